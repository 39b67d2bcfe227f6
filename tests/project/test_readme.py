"""Every Python snippet of the README and of docs/ runs, and prints what its comments say."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
README = REPOSITORY / "README.md"
PAGES = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]


def snippets(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


SERVERS = [s for s in snippets(README) if s.startswith("# server.py")]
(CLIENT,) = [s for s in snippets(README) if s.startswith("# client.py")]
ALONE = [(page, s) for page in PAGES for s in snippets(page) if not s.startswith("# ")]


def promised(snippet):
    return re.findall(r"print\(.*\)  # (.*)", snippet)


def test_there_are_snippets_of_each_kind():
    assert len(SERVERS) == 2
    pages = [
        "asyncio",
        "children",
        "ends",
        "fdpass",
        "many",
        "many",
        "many",
        "messages",
        "records",
        "records",
        "reference",
        "servers",
    ]
    assert [page.stem for page, _ in ALONE] == pages


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.read_text().splitlines()) <= 150
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def until_it_connects(client):
    """Make the client of the README wait for the server, which a reader does by hand."""
    first = 'with memenpsf.connect("prices", "<QdI") as interface:'
    assert first in client
    return client.replace(
        first,
        "def connect():\n"
        "    while True:\n"
        "        try:\n"
        '            return memenpsf.connect("prices", "<QdI")\n'
        "        except (FileNotFoundError, ConnectionRefusedError):\n"
        "            pass\n"
        "with connect() as interface:",
    )


@pytest.mark.parametrize("server", SERVERS, ids=["threads", "trio"])
def test_both_ends_exchange_what_they_say(program, tmp_path, monkeypatch, server):
    tmp_path.chmod(0o700)
    monkeypatch.setenv("MEMENPSF_RUNTIME_DIR", str(tmp_path))
    started = program(server)
    client = program(until_it_connects(CLIENT))
    printed, _ = client.communicate(timeout=30)
    assert printed.splitlines() == promised(CLIENT)
    assert client.returncode == 0
    if "trio" not in server:
        assert started.wait(timeout=30) == 0


@pytest.mark.parametrize(("page", "snippet"), ALONE, ids=[page.stem for page, _ in ALONE])
def test_a_snippet_prints_what_it_says(capsys, page, snippet):
    exec(compile(snippet, str(page), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines() == promised(snippet)
