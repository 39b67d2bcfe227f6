"""What the producer and the consumer of frames share: the record, and all code that does not wait.

The record is a whole frame with its number.  The film shows a photograph that moves past, with its
mirror image beside it, so that there is no seam.  Both sides have the photograph, so the consumer
knows what each frame must look like.
"""

from __future__ import annotations

import enum
import time
from pathlib import Path
from typing import Any, NamedTuple

try:
    import numpy as np
    from PIL import Image, ImageOps
except ImportError as error:
    raise SystemExit(f"{error}: install what this example needs, 'numpy' and 'Pillow'") from None

PHOTOGRAPH = Path(__file__).parent / "coffee.jpg"  # README.md says where it comes from
WIDTH, HEIGHT = 1920, 1080
STEP = 8  # pixels from one frame to the next

FRAME = np.dtype(
    [
        ("number", "<u4"),  # from 0 in each series
        ("left", "<u4"),  # how many frames of the series are still to come
        ("pixels", "u1", (HEIGHT, WIDTH, 3)),
    ]
)
CAPACITY = 4  # frames under way: 25 MB

START = 128  # the control message (START, way) begins a series


class Way(enum.IntEnum):
    """How the frames of a series are sent and received."""

    COPIED = 1
    IN_PLACE = 2

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


class WrongFrame(Exception):
    """A frame arrived that the producer cannot have sent."""


def announcement(way: Way) -> bytes:
    """Return the control message that begins a series."""
    return bytes((START, way))


def announced(message: bytes | None) -> Way:
    """Return how the announced series travels; raise WrongFrame for an unknown message."""
    if message is None or message[0] != START or message[1] not in set(Way):
        raise WrongFrame(f"the producer sent a control message that means nothing: {message!r}")
    return Way(message[1])


class Film:
    """The picture in motion."""

    def __init__(self, photograph: Path = PHOTOGRAPH) -> None:
        with Image.open(photograph) as image:
            picture = np.asarray(ImageOps.fit(image.convert("RGB"), (WIDTH, HEIGHT)))
        self._strip = np.concatenate([picture, picture[:, ::-1], picture], axis=1)

    def frame(self, number: int) -> Any:
        """Return what a frame looks like: a window on the film, of shape (HEIGHT, WIDTH, 3)."""
        at = number * STEP % (2 * WIDTH)
        return self._strip[:, at : at + WIDTH]

    def fill(self, record: Any, number: int, total: int) -> None:
        """Make a frame of a series in `record`, wherever that is: an array of one FRAME.

        The one copy that there is in place.  What this function makes of `record` ends with it,
        because no view of a loan may outlive the block of the loan.
        """
        record["number"] = number
        record["left"] = total - number - 1
        record["pixels"][...] = self.frame(number)


def blank() -> Any:
    """Return memory of our own for one frame."""
    return np.zeros(1, FRAME)


def histogram(pixels: Any) -> list[int]:
    """Count how often each value from 0 to 255 occurs in a frame, all colours alike.

    Reads the memory where it is: to Pillow it is a grey picture three times as wide.
    """
    height, width, colours = pixels.shape
    grey = Image.frombuffer("L", (width * colours, height), pixels, "raw", "L", 0, 1)
    return grey.histogram()


def chart(counts: Any, columns: int = 64) -> str:
    """Draw a histogram as one line of text."""
    heights = np.asarray(counts).reshape(columns, -1).sum(axis=1)
    levels = heights * 8 // max(1, heights.max())
    return "".join(" ▁▂▃▄▅▆▇█"[level] for level in levels)


class Clock:
    """Tells how fast frames went by, since it was made."""

    def __init__(self) -> None:
        self._wall, self._busy = time.perf_counter(), time.process_time()

    def rate(self, way: Way, frames: int) -> str:
        """Return the line that either side prints about a series."""
        wall, busy = time.perf_counter() - self._wall, time.process_time() - self._busy
        return (
            f"{way!s:8} {frames} frames, {frames / wall:.1f} frames/s, "
            f"{busy / frames * 1000:.2f} ms of processor time each"
        )


class Kept(NamedTuple):
    """A frame that is looked at again when there is time."""

    number: int
    pixels: Any  # a copy
    counts: list[int]  # the histogram, as it was counted where the frame arrived


class Series:
    """The frames of one series, as the consumer takes them; the clock runs from the beginning."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.taken = 0
        self.complete = False
        self.counts = np.zeros(256, np.int64)  # the histogram of all frames
        self.kept: list[Kept] = []  # the first, the middle and the last one
        self.rate = ""
        self._clock = Clock()

    def take(self, record: Any) -> None:
        """Count the pixel values of a frame, perhaps in place; raise WrongFrame if out of order."""
        number, left = int(record["number"]), int(record["left"])
        if number != self.taken:
            raise WrongFrame(f"{self.way}: frame {number} arrived instead of {self.taken}")
        pixels = record["pixels"]
        counts = histogram(pixels)
        self.counts += counts
        self.taken += 1
        total = self.taken + left
        if left == 0 or number in {0, total // 2}:
            self.kept.append(Kept(number, pixels.copy(), counts))
        if left == 0:
            self.complete = True
            self.rate = self._clock.rate(self.way, self.taken)

    def check(self, film: Film) -> str:
        """Compare the frames that were kept, pixel by pixel; raise WrongFrame, or tell in words."""
        for number, pixels, counts in self.kept:
            if not np.array_equal(pixels, film.frame(number)):
                raise WrongFrame(f"{self.way}: frame {number} is not what the film shows")
            if counts != np.bincount(pixels.reshape(-1), minlength=256).tolist():
                raise WrongFrame(f"{self.way}: the histogram of frame {number} is wrong")
        return f"{self.way!s:8} {len(self.kept)} frames and their histograms checked"

    def write(self, folder: Path) -> list[Path]:
        """Write the frames that were kept as PNG files; return where."""
        paths = []
        for number, pixels, _ in self.kept:
            paths.append(folder / f"{self.way.name.lower()}-{number:05}.png")
            Image.fromarray(pixels).save(paths[-1], compress_level=1)
        return paths
