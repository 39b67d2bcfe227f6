"""The options of connections and listeners: checked before anything is opened, for every door."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ipcqueue.lowlevel import Role, Terms, check_options, checked_socket

from ._quota import INSTEAD

if TYPE_CHECKING:
    import os
    import socket
    from collections.abc import Iterable
    from typing import Literal, TypeAlias

    from ipcqueue import Options
    from ipcqueue.lowlevel import Seconds

    from ._address import Address
    from ._quota import Quota

    ListenAt: TypeAlias = str | os.PathLike[str] | socket.socket  # an address, or what listens

    class ConnectOptions(Options, total=False):
        """The options of connect() beside its times."""

        name: str
        capacity: int | None
        role: Literal["client", "server"]

    class InterfaceOptions(ConnectOptions, total=False):
        """All options of an Interface."""

        timeout: Seconds

    class SeekOptions(InterfaceOptions, total=False):
        """All options of connect()."""

        retry: Seconds

    class ListenOptions(InterfaceOptions, total=False):
        """The options of listen() and serve()."""

        mode: int | None
        group: int | str | None
        quota: Quota


BOTH_WAYS = Role(sends=True, receives=True)
ROLES = ("client", "server")


# Options of listen() beside those of Terms, and where else each goes.
LISTENING = frozenset({"mode", "group", "role", "quota"})
_ELSEWHERE = {
    "mode": "listen()",
    "group": "listen()",
    "quota": "listen()",
    "role": "Interface(), connect() or listen()",
    "retry": "connect()",
    "on_error": "serve()",
    "drain": "memenpsf.serve()",
}
_IN_LISTEN = {option: f"listen({write})" for option, write in INSTEAD.items()}


def checked_stream(stream: socket.socket) -> socket.socket:
    """Return the socket; raise TypeError for anything else, and say what takes an address."""
    if isinstance(stream, str) or hasattr(stream, "__fspath__"):
        raise TypeError(
            f"expected a connected AF_UNIX socket, got {stream!r}: connect() takes an address"
        )
    return checked_socket(stream)


def checked_role(role: str) -> str:
    """Return the role; raise TypeError or ValueError for anything else."""
    if not isinstance(role, str):
        raise TypeError(f"role is one of {ROLES}, not {role!r}")
    if role not in ROLES:
        raise ValueError(f"role is one of {ROLES}, not {role!r}")
    return role


def check_interface_options(
    caller: str,
    options: Iterable[str],
    own: Iterable[str] = (),
    elsewhere: Any = MappingProxyType({}),
) -> None:
    """Raise TypeError for an unknown option of an interface; see lowlevel.check_options()."""
    others = {**_ELSEWHERE, **elsewhere}
    for option in own:
        others.pop(option, None)
    check_options(caller, options, own, others, _IN_LISTEN)


def check_listener_options(caller: str, options: Iterable[str], own: Iterable[str] = ()) -> None:
    """Raise TypeError for an unknown option of a listener; `own` are further ones of the caller."""
    others = {each: _ELSEWHERE[each] for each in ("retry", "on_error", "drain") if each not in own}
    check_options(caller, options, (*LISTENING, *own), others, INSTEAD)


def prepare_to_connect(
    address: str | os.PathLike[str], record: Any, timeout: Seconds, options: ConnectOptions
) -> tuple[Address, Terms, str]:
    """Check the arguments of connect() before anything is opened; return address, terms, role."""
    from ._address import resolve  # noqa: PLC0415 (slow to import, and not needed by pair())

    check_interface_options("connect", options, ("role", "retry"))
    role = checked_role(options.pop("role", "client"))
    where = resolve(address)
    if "allow_uids" not in options and (uids := where.default_uids) is not None:
        options["allow_uids"] = uids
    rest: Any = options
    return where, Terms(record, BOTH_WAYS, timeout=timeout, **rest), role
