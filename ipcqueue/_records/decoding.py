"""The error for a record that the application's code cannot decode."""

from __future__ import annotations

from ipcqueue._errors import DecodeFailed

# Characters of the application's error text that we quote; a guess.  It may contain the message.
_MAX_TEXT = 500


def decode_failed(what: str, error: BaseException) -> DecodeFailed:
    """Return the error for a record that cannot be decoded; its cause is `error`."""
    failed = DecodeFailed(f"{what} could not be decoded: {described(error)}")
    failed.__cause__ = error
    return failed


def described(error: BaseException) -> str:
    """Return type and text of an application's exception, whose __str__() may fail."""
    try:
        text = str.__getitem__(str(error), slice(_MAX_TEXT))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 (this record must not block the others)
        text = "(this exception cannot be printed)"
    return f"{type(error).__name__}: {text}"
