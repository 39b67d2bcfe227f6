"""Every Python snippet of the README runs, and prints what its comments say it prints."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
SERVERS = [s for s in SNIPPETS if s.startswith("# server.py")]
(CLIENT,) = [s for s in SNIPPETS if s.startswith("# client.py")]
ALONE = [s for s in SNIPPETS if not s.startswith("# ")]


def promised(snippet):
    return re.findall(r"print\(.*\)  # (.*)", snippet)


def test_there_are_snippets_of_each_kind():
    assert len(SERVERS) == 2
    assert len(ALONE) == 3


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


@pytest.mark.parametrize("snippet", ALONE, ids=["records", "messages", "run"])
def test_a_snippet_prints_what_it_says(capsys, snippet):
    exec(compile(snippet, str(README), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines() == promised(snippet)
