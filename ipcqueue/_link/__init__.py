"""A connection: control messages, handshake, the socket, the endpoint; nothing here waits."""
