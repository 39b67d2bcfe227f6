"""Makes a picture of the page in a real browser: Debian's chromium, which needs no display for it.

    python picture.py http://127.0.0.1:8000/ picture.png      # while dashboard.py runs

It talks to the browser's developer tools over two pipes, so it needs no library for that; Pillow
makes the file a third as large.
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

try:
    from PIL import Image
except ImportError as error:
    raise SystemExit(f"{error}: install what this needs, 'Pillow'") from None

OPTIONS = (
    "--headless",
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
    "about:blank",
)
# The browser reads its descriptor 3, and writes to 4.
START = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 10  # seconds for the browser to end
COLOURS = 96


class Browser:
    """A browser with one page."""

    def __init__(self, program: str) -> None:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        reads, self._requests = os.pipe()
        answers, writes = os.pipe()
        folder = f"--user-data-dir={self._folder.name}"
        self._process = subprocess.Popen(  # noqa: S603 (the program that the user names)
            [sys.executable, "-c", START, str(reads), str(writes), program, folder, *OPTIONS],
            pass_fds=(reads, writes),
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)
        self._answers = os.fdopen(answers, "rb")
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}

    def open(self, url: str, width: int, height: int, *, dark: bool = False) -> None:
        """Show a page in a window of this size."""
        targets = self.call("Target.getTargets")["targetInfos"]
        (page,) = (each["targetId"] for each in targets if each["type"] == "page")
        session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript in the page."""
        return self.call("Runtime.evaluate", expression=expression)["result"].get("value")

    def picture(self) -> bytes:
        """Return a PNG of what the window shows."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the developer tools; return its result."""
        number = next(self._numbers)
        request = {"id": number, "method": method, "params": parameters, **self._session}
        os.write(self._requests, json.dumps(request).encode() + b"\0")
        while True:  # events come in between
            answer = json.loads(self._answer())
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _answer(self) -> bytes:
        text = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser has ended")
            text += byte
        return bytes(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._requests)  # it ends when nobody can ask any more
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            self._answers.close()
            self._folder.cleanup()


def main() -> int:
    """Make the picture."""
    parser = argparse.ArgumentParser(prog="picture", description="Make a picture of the page.")
    add = parser.add_argument
    add("url")
    add("file", type=Path, help="the PNG to write")
    add("--dark", action="store_true", help="in dark colours")
    add("--after", type=float, default=12, metavar="S", help="seconds to wait (default: 12)")
    add("--browser", default="chromium", help="the program (default: chromium)")
    add("--size", type=int, nargs=2, default=(1120, 860), metavar=("W", "H"), help="in pixels")
    options = parser.parse_args()
    program = shutil.which(options.browser)
    if program is None:
        print(f"picture: there is no {options.browser} here", file=sys.stderr)
        return 1
    with Browser(program) as browser:
        browser.open(options.url, *options.size, dark=options.dark)
        time.sleep(options.after)
        picture = browser.picture()
    with Image.open(io.BytesIO(picture)) as image:
        image.convert("RGB").quantize(COLOURS).save(options.file, "PNG", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
