"""Names that people guess from other libraries: to ask for one says which name it has here.

They are attributes of the class, not a __getattr__(): CPython would look up every attribute of such
a class in its slow way, xmit and recv too.  To hasattr(), copy and pickle they are not there, and
dir() of an object does not list them; help() of the class does.
"""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Guess:
    """An attribute that is not there: AttributeError says what is."""

    def __init__(self, name: str, advice: str) -> None:
        self._name = name
        self._advice = advice
        self.__doc__ = f"No such name: {advice}."  # which help() shows

    def __get__(self, instance: object, owner: type | None = None) -> NoReturn:
        # Without `name` and `obj`, from which CPython makes a suggestion of its own.
        kind = (type(instance) if owner is None else owner).__name__
        raise AttributeError(f"{kind!r} has no {self._name!r}: {self._advice}")


def guess(kind: Any, advice: Mapping[str, Iterable[str]]) -> None:
    """Have a class say what it has instead of names; `advice` says what instead of which names."""
    for text, names in advice.items():
        for name in names:
            if name not in vars(kind):
                setattr(kind, name, Guess(name, text))


def listed(instance: object, names: Iterable[str]) -> list[str]:
    """Return the names, for dir(), without those that are only guessed."""
    kind, own = type(instance), vars(instance)
    return [name for name in names if name in own or not isinstance(_found(kind, name), Guess)]


def _found(kind: type, name: str) -> object:
    """Return what a class has under a name, as it is."""
    for each in kind.__mro__:
        if name in vars(each):
            return vars(each)[name]
    return None


def check_many(records: object, error: Exception) -> None:
    """After xmit_many() has raised `error`: raise TypeError instead if it was not given many."""
    if isinstance(error, TypeError) and not hasattr(records, "__iter__"):
        raise TypeError(
            f"xmit_many() takes an iterable of records, such as a list, not {reprlib.repr(records)}; "
            "xmit() takes one record"
        ) from None


# Of all that send, of all that receive, and of all.
SENDS = {
    "use xmit()": ("send", "put", "write", "publish", "sendall"),
    "use xmit(record, timeout=0), which raises Full": ("put_nowait", "send_nowait"),
    "use xmit_many()": ("send_many", "put_many"),
    "a record is the peer's once xmit() has returned": ("flush", "drain"),
}
RECEIVES = {
    "use recv()": ("receive", "get", "read"),
    "use recv(timeout=0)": ("get_nowait", "recv_nowait", "receive_nowait"),
    "use recv_vectored()": ("recv_many", "receive_many", "get_many"),
}
ANY = {
    "statistics() says how many records wait": ("qsize", "empty", "full"),
    "use the argument `timeout` of each call": ("settimeout", "setblocking"),
    "use close(); one that sends has send_eof(), too": ("shutdown", "disconnect"),
}
GUESSED = {**ANY, **SENDS, **RECEIVES}
