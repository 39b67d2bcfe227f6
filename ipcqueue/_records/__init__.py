"""What a record is: specs, layouts, codecs.  Pure: bytes in, bytes out, no I/O."""
