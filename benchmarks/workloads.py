"""The workloads: which roles, cases and peers belong together, and what their value is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .peers import GROUPS
from .records import SIZE as RECORD

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
    setup: Mapping[str, Any] = field(default_factory=dict)  # attributes of both sides
    connects: bool = False  # connecting is part of the turn
    pace: float | None = None  # messages a second, if not as many as it can
    timed: bool = False  # the roles want to know how many seconds a turn has
    stretch: float = 1  # how many times the usual length of a turn it needs
    count: int | None = None  # messages a turn, if not as many as fill its time


@dataclass(frozen=True)
class Workload:
    """A table: peers by cases."""

    name: str
    title: str
    unit: str
    higher_is_better: bool
    cases: tuple[Case, ...]
    group: str = "messages"  # of peers
    by_form: bool = False  # the last word of a name says with what of ours it is compared

    @property
    def peers(self) -> tuple[str, ...]:
        """Return the names of its rows."""
        return tuple(GROUPS[self.group])


def rate(count: int, client: dict[str, Any], server: dict[str, Any]) -> float:
    """Return messages a second, from the first send until the last is there."""
    return count / (server["ended"] - client["started"]) * 1e9


def record_rate(count: int, client: dict[str, Any], server: dict[str, Any]) -> float:
    """Return the same for records, of which a batch has many."""
    return rate(count, client, server) * server["batch"]


def median_us(count: int, client: dict[str, Any], server: dict[str, Any]) -> float:  # noqa: ARG001
    """Return the median of the round trips of a turn, in microseconds."""
    return client["median"] / 1e3


def mean_us(count: int, client: dict[str, Any], server: dict[str, Any]) -> float:  # noqa: ARG001
    """Return their mean, which knows of waits that the median does not see."""
    return client["sum"] / count / 1e3


def first_us(count: int, client: dict[str, Any], server: dict[str, Any]) -> float:  # noqa: ARG001
    """Return the time until what was sent first is there, in microseconds."""
    return (server["ended"] - client["started"]) / 1e3


def sender_cpu(count: int, client: dict[str, Any], server: dict[str, Any]) -> float:  # noqa: ARG001
    """Return the share of a processor that the sender's process took, in percent."""
    return 100 * client["cpu"]


def receiver_cpu(count: int, client: dict[str, Any], server: dict[str, Any]) -> float:  # noqa: ARG001
    """Return the same of the receiver's."""
    return 100 * server["cpu"]


def idle_cpu(count: int, client: dict[str, Any], server: dict[str, Any]) -> float:  # noqa: ARG001
    """Return the share that the waiting receiver's process took, in percent."""
    return 100 * client["partner"]


def shown(size: int) -> str:
    """Return a size for people."""
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} B"


def can_sleep(kind: type[Peer]) -> bool:
    """Tell whether messages can go there and back, and one can sleep until one comes."""
    return kind.can_answer and kind.can_sleep


def can_poll(kind: type[Peer]) -> bool:
    """Tell whether one can wait without sleeping."""
    return kind.can_answer and kind.can_poll


def meets(kind: type[Peer]) -> bool:
    """Tell whether a connection comes from an address, and is not inherited."""
    return kind.can_answer and not kind.kin


def streams(sizes: Mapping[int, bool], **more: Any) -> tuple[Case, ...]:
    """Return a case for each size: whether it is part of a quick run."""
    return tuple(
        Case(shown(size), size, quick=quick, value=rate, **more) for size, quick in sizes.items()
    )


def round_trips(value: Callable[..., float], *, disturbed: bool = False) -> tuple[Case, ...]:
    """Return the blocking and the busy round trip, and one that surely sleeps.

    With default settings ours polls for a moment before it sleeps, and an answer may come within
    that.  Told not to, it is asleep when one comes, as all are that have only the kernel to ask.
    """
    blocking = Case(
        "blocking",
        options=DISTURBED if disturbed else {},
        roles=("ask", "answer"),
        value=value,
        fits=can_sleep,
        stretch=PATIENT if disturbed else 1,
    )
    options = {**blocking.options, "busy": True}
    busy = replace(blocking, label="busy", options=options, fits=can_poll)
    if disturbed:
        return blocking, busy
    return blocking, replace(blocking, label="sleeping", setup={"spin": 0}), busy


def batches(*sizes: int, disturbed: bool = False) -> tuple[Case, ...]:
    """Return a case for batches of so many records of 64 B."""
    return tuple(
        Case(
            f"{size:,} records",
            size * RECORD,
            {"batch": size, **(DISTURBED if disturbed else {})},
            quick=not disturbed,
            stretch=PATIENT if disturbed else 1,
            roles=("send_batches", "take_batches"),
            value=record_rate,
        )
        for size in sizes
    )


def crowds(*sizes: int) -> tuple[Case, ...]:
    """Return a case for so many clients."""
    return tuple(
        Case(f"{size:,} clients", setup={"clients": size}, quick=size in {1, 1000}, value=rate)
        for size in sizes
    )


def usage() -> tuple[Case, ...]:
    """Return cases for the processor's time."""
    steady = Case(
        "10,000/s, receiver",
        roles=("send_paced", "take_measured"),
        value=receiver_cpu,
        fits=can_sleep,
        pace=10_000,
        timed=True,
        stretch=2.5,
    )
    idle = replace(
        steady,
        label="waiting",
        roles=("send_after", "take_measured"),
        pace=None,
        count=1,
        value=idle_cpu,
    )
    return (
        steady,
        replace(steady, label="10,000/s, sender", value=sender_cpu, quick=False),
        idle,
    )


def trio_cases() -> tuple[Case, ...]:
    """Return who is a Trio program."""
    receiver = Case("receiver in Trio", roles=("send_trio", "take_trio"), value=rate)
    return receiver, replace(receiver, label="both in Trio", setup={"asynchronous": True})


def large(*sizes: int) -> tuple[Case, ...]:
    """Return a case for each size."""
    roles = "send_filled", "take_read"
    return tuple(
        Case(shown(size), size, roles=roles, value=rate, quick=size != 256 * KIB) for size in sizes
    )


def meeting() -> tuple[Case, ...]:
    """Return the one case of connecting."""
    roles = "connect_and_send", "accept_and_take"
    return (Case("first record", roles=roles, value=first_us, connects=True, count=1, fits=meets),)


DISTURBED = {"disturbed": True}
PATIENT = 4  # threads of a process take turns of 5 ms each, of which a turn of ours needs many
SIZES = {
    16: True, 64: True, 256: False, KIB: True,
    4 * KIB: False, 16 * KIB: True, 64 * KIB: False, MIB: True,
}  # fmt: skip

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("rate", "One way, one by one", "messages/s", True, streams(SIZES)),
        Workload("roundtrip", "Round trip of 64 B", "µs (median)", False, round_trips(median_us)),
        Workload(
            "busy-rate",
            "One way, one other busy Python thread in each process",
            "messages/s",
            True,
            streams({size: size == 64 for size in SIZES}, options=DISTURBED, stretch=PATIENT),
        ),
        Workload(
            "busy-roundtrip",
            "Round trip of 64 B, one other busy Python thread in each process",
            "µs (mean)",
            False,
            round_trips(mean_us, disturbed=True),
        ),
        Workload(
            "batches",
            "Batches of records of 64 B",
            "records/s",
            True,
            batches(64, 1024),
            "batches",
            by_form=True,
        ),
        Workload(
            "busy-batches",
            "Batches of records of 64 B, one other busy Python thread in each process",
            "records/s",
            True,
            batches(64, 1024, disturbed=True),
            "batches",
            by_form=True,
        ),
        Workload(
            "clients",
            "One server, one active client of 64 B among so many",
            "messages/s",
            True,
            crowds(1, 10, 100, 1000),
            "crowds",
        ),
        Workload("cpu", "Processor time, messages of 64 B", "% of a processor", False, usage()),
        Workload("trio", "Through Trio, 64 B one way", "messages/s", True, trio_cases(), "trio"),
        Workload(
            "large",
            "Large messages, all of each written once and read once",
            "messages/s",
            True,
            large(64 * KIB, 256 * KIB, MIB, 8 * MIB),
            "large",
        ),
        Workload(
            "handover",
            "8 MiB in a region of the registry, handed over and answered",
            "µs (median)",
            False,
            (Case("round trip", roles=("hand_over", "give_back"), value=median_us),),
            "handover",
        ),
        Workload("connect", "From connecting to the first record of 64 B", "µs", False, meeting()),
        Workload(
            "import",
            "Import, beyond what the interpreter's start takes",
            "ms",
            False,
            (Case("import"),),
            "imports",
        ),
    )
}
