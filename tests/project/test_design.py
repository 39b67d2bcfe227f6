"""docs/design.md says how the code is laid out: what it names is there, and nothing is left out."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent
DESIGN = (REPOSITORY / "docs" / "design.md").read_text()


def section(title):
    return DESIGN.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(title):
    """The first column of all tables of a section, but for their heads."""
    found = re.findall(r"^\| (.*?) \|.*\|$", section(title), flags=re.MULTILINE)
    return [each for each in found if each not in {"folder", "read"}]


def test_every_folder_of_the_packages_has_its_sentence():
    told = set(re.findall(r"^\| `(\S+)/`", section("The house"), flags=re.MULTILINE))
    assert {"tests/kit", "ipcqueue/core"} <= told
    for folder in told:
        assert (REPOSITORY / folder).is_dir(), folder
    for package in ("fdpass", "ipcqueue", "memenpsf"):
        folders = {path.parent for path in (REPOSITORY / package).rglob("*.py")}
        assert {str(folder.relative_to(REPOSITORY)) for folder in folders} <= told


def test_the_hours_path_is_there_and_takes_an_hour():
    path, _ = section("An hour's path").split("Then, by what you look for")
    files = re.findall(r"`(\S+\.(?:py|[ch]))`", path)
    assert len(files) == 10
    lines = sum(len((REPOSITORY / file).read_text().splitlines()) for file in files)
    stated = int(re.search(r"About ([\d,]+) lines", path)[1].replace(",", ""))
    assert abs(lines - stated) <= stated / 10
    for row in rows("An hour's path")[len(files) :]:
        names = re.findall(r"`(\S+?)`", row)
        folder = Path(names[0]).parent
        for name in names:
            assert (REPOSITORY / (name if "/" in name else folder / name)).is_file(), row
