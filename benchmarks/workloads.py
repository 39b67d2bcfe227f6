"""The workloads: which roles, cases and peers belong together, and what their value is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .peers import MESSAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .peers import Peer

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Case:
    """A column of a workload's table."""

    label: str
    size: int = 64
    options: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = True  # part of a quick run
    roles: tuple[str, str] = ("send_stream", "take_stream")  # of client and server
    value: Callable[[int, dict[str, Any], dict[str, Any]], float] | None = None
    fits: Callable[[type[Peer]], bool] | None = None
    stretch: float = 1  # how many times the usual length of a turn it needs
    count: int | None = None  # messages a turn, if not as many as fill its time


@dataclass(frozen=True)
class Workload:
    """A table: peers by cases."""

    name: str
    title: str
    unit: str
    higher_is_better: bool
    peers: tuple[str, ...]
    cases: tuple[Case, ...]


def rate(count: int, client: dict[str, Any], server: dict[str, Any]) -> float:
    """Return messages a second, from the first send until the last is there."""
    return count / (server["ended"] - client["started"]) * 1e9


def median_us(count: int, client: dict[str, Any], server: dict[str, Any]) -> float:  # noqa: ARG001
    """Return the median of the round trips of a turn, in microseconds."""
    return client["median"] / 1e3


def mean_us(count: int, client: dict[str, Any], server: dict[str, Any]) -> float:  # noqa: ARG001
    """Return their mean, which knows of waits that the median does not see."""
    return client["sum"] / count / 1e3


def shown(size: int) -> str:
    """Return a size for people."""
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} B"


def can_answer(kind: type[Peer]) -> bool:
    """Tell whether messages can go there and back."""
    return kind.can_answer


def can_poll(kind: type[Peer]) -> bool:
    """Tell whether one can wait without sleeping."""
    return kind.can_answer and kind.can_poll


def streams(sizes: Mapping[int, bool], **more: Any) -> tuple[Case, ...]:
    """Return a case for each size: whether it is part of a quick run."""
    return tuple(
        Case(shown(size), size, quick=quick, value=rate, **more) for size, quick in sizes.items()
    )


def round_trips(value: Callable[..., float], *, disturbed: bool = False) -> tuple[Case, ...]:
    """Return the blocking and the busy round trip."""
    blocking = Case(
        "blocking",
        options=DISTURBED if disturbed else {},
        roles=("ask", "answer"),
        value=value,
        fits=can_answer,
        stretch=PATIENT if disturbed else 1,
    )
    options = {**blocking.options, "busy": True}
    return blocking, replace(blocking, label="busy", options=options, fits=can_poll)


DISTURBED = {"disturbed": True}
PATIENT = 5  # threads of a process take turns of 5 ms each, of which a turn of ours needs many
SIZES = {
    16: True, 64: True, 256: False, KIB: True,
    4 * KIB: False, 16 * KIB: True, 64 * KIB: False, MIB: True,
}  # fmt: skip
ALL = tuple(MESSAGES)

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("rate", "One way, one by one", "messages/s", True, ALL, streams(SIZES)),
        Workload(
            "roundtrip", "Round trip of 64 B", "µs (median)", False, ALL, round_trips(median_us)
        ),
        Workload(
            "busy-rate",
            "One way, one other busy Python thread in each process",
            "messages/s",
            True,
            ALL,
            streams({size: size == 64 for size in SIZES}, options=DISTURBED, stretch=PATIENT),
        ),
        Workload(
            "busy-roundtrip",
            "Round trip of 64 B, one other busy Python thread in each process",
            "µs (mean)",
            False,
            ALL,
            round_trips(mean_us, disturbed=True),
        ),
    )
}
