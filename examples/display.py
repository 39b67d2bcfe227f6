"""How records are shown: one line each, or a table of rates.  Pure: text comes out, nothing waits.

What a server sends is not trusted with a terminal: names are shown in printable ASCII.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from counters import FIELDS, Kind, Sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

KINDS = {kind.value: kind.name.lower() for kind in Kind}
BAR = 10  # columns: a table is no wider than 80


def label(name: bytes) -> str:
    """Return the name in a record as one harmless word."""
    text = name.rstrip(b"\0").decode("latin-1")
    return "".join(c if "!" <= c <= "~" else f"\\x{ord(c):02x}" for c in text)


def line(sample: Sample) -> str:
    """Return a record as a line: the time in seconds, the kind, the name, the numbers by name."""
    seconds, nanoseconds = divmod(sample.time, 10**9)
    words = [f"{seconds}.{nanoseconds:09}", KINDS.get(sample.kind, f"kind{sample.kind}")]
    if name := label(sample.name):
        words.append(name)
    fields = FIELDS.get(sample.kind, ("a", "b", "c", "d"))
    words += [f"{field}={value}" for field, value in zip(fields, sample[3:], strict=False)]
    return " ".join(words)


def size(number: float) -> str:
    """Return a number of bytes, to four digits or so."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if number < 1024:  # noqa: PLR2004 (what the units mean)
            break
        number, unit = number / 1024, larger
    return f"{number:.1f} {unit}"


def row(name: str, *cells: str) -> str:
    """Return one row of the table."""
    return f"{name:15}" + "".join(f"{cell:>13}" for cell in cells)


class Table:
    """The latest round, with what has changed since the one before."""

    def __init__(self) -> None:
        self._latest: dict[tuple[int, bytes], Sample] = {}
        self._before = self._latest
        self._time = -1
        self._milliseconds = 0
        self._received = 0
        self._skipped = 0

    def update(self, samples: Iterable[Sample]) -> None:
        """Take in records as they come."""
        for sample in samples:
            self._received += 1
            if sample.kind == Kind.INTERVAL:
                self._milliseconds = sample.a
            elif sample.kind == Kind.SKIPPED:
                self._skipped += sample.a
            else:
                if sample.time != self._time:
                    self._time = sample.time
                    self._before, self._latest = self._latest, {}
                self._latest[sample.kind, sample.name] = sample

    def lines(self) -> Iterator[str]:
        """Yield the table."""
        yield (
            f"every {self._milliseconds / 1000:g} s; {max(self._time, 0) / 1e9:.1f} s after boot; "
            f"{self._received} records received, {self._skipped} skipped"
        )
        yield ""
        yield row("core", "busy", "user", "system", "stolen")
        yield from map(self._core, self._of(Kind.CPU))
        yield ""
        yield row("", "total", "free", "available", "cached")
        yield from (row("memory", *map(size, sample[3:])) for sample in self._of(Kind.MEMORY))
        yield ""
        yield row("device", "received", "packets/s", "sent", "packets/s")
        yield from map(self._device, self._of(Kind.NETWORK))

    def _of(self, kind: Kind) -> list[Sample]:
        return [sample for sample in self._latest.values() if sample.kind == kind]

    def _core(self, sample: Sample) -> str:
        gains = self._gains(sample)
        if not sum(gains):
            return row(label(sample.name), *"----")
        user, system, idle, stolen = (100 * gain / sum(gains) for gain in gains)
        shares = (f"{share:.1f} %" for share in (100 - idle, user, system, stolen))
        bar = "#" * round((100 - idle) / 100 * BAR)
        return f"{row(label(sample.name), *shares)}  {bar}".rstrip()

    def _device(self, sample: Sample) -> str:
        if not (gains := self._gains(sample)):
            return row(label(sample.name), *"----")
        rx_bytes, rx_packets, tx_bytes, tx_packets = gains
        received = f"{size(rx_bytes)}/s", f"{rx_packets:.1f}"
        sent = f"{size(tx_bytes)}/s", f"{tx_packets:.1f}"
        return row(label(sample.name), *received, *sent)

    def _gains(self, sample: Sample) -> list[float]:
        """Return how much the four numbers grow in a second; nothing if that is not known yet.

        One that has become smaller has begun anew, or was never exact (iowait): that counts as 0.
        """
        before = self._before.get((sample.kind, sample.name))
        if before is None or sample.time <= before.time:
            return []
        seconds = (sample.time - before.time) / 1e9
        pairs = zip(sample[3:], before[3:], strict=True)
        return [max(0, new - old) / seconds for new, old in pairs]


def screen(lines: Iterable[str], columns: int, rows: int) -> str:
    """Return what draws these lines over the former ones in a terminal of that size."""
    shown = [text[:columns] for text in lines]
    if len(shown) >= rows:  # the last row is the cursor's
        hidden = len(shown) - (rows - 2)
        shown[rows - 2 :] = [f"... {hidden} more lines"[:columns]]
    # Home; each line erases what stood behind it; the last erases everything below.
    return "\x1b[H" + "".join(f"{text}\x1b[K\n" for text in shown) + "\x1b[J"
