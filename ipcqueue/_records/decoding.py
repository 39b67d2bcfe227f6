"""What is said of a record that cannot be decoded, by code that is not ours."""

from __future__ import annotations

from ipcqueue._errors import DecodeFailed

# Characters of a foreign exception's text in our own; a guess.  It may be the whole message.
_MAX_TEXT = 500


def decode_failed(what: str, error: BaseException) -> DecodeFailed:
    """Return the error for a record that is given up; its cause is `error`."""
    failed = DecodeFailed(f"{what} could not be decoded: {described(error)}")
    failed.__cause__ = error
    return failed


def described(error: BaseException) -> str:
    """Return the type and the text of a foreign exception, whose own code may fail."""
    try:
        text = str.__getitem__(str(error), slice(_MAX_TEXT))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 (whatever it is, the record must not block the others)
        text = "(this exception cannot be printed)"
    return f"{type(error).__name__}: {text}"
