"""One descriptor, one owner."""

import errno
import gc
import os
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest

import fdpass
import fdpass.lowlevel


@pytest.fixture(autouse=True)
def _nothing_leaks():
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture
def number():
    return os.open("/dev/null", os.O_RDONLY)


def is_open(number):
    return Path(f"/proc/self/fd/{number}").exists()


def test_it_closes_its_descriptor_once(number):
    fd = fdpass.Fd(number)
    assert fd.fileno() == number
    assert not fd.closed
    fd.close()
    assert fd.closed
    assert not is_open(number)
    again = os.open("/dev/null", os.O_RDONLY)
    assert again == number
    fd.close()
    assert is_open(again)
    os.close(again)


def test_a_with_block_closes_it(number):
    with fdpass.Fd(number) as fd:
        assert is_open(fd.fileno())
    assert fd.closed
    assert not is_open(number)


def test_detaching_hands_the_duty_over(number):
    fd = fdpass.Fd(number)
    assert fd.detach() == number
    assert fd.closed
    assert is_open(number)
    os.close(number)


@pytest.mark.parametrize("use", [fdpass.Fd.fileno, fdpass.Fd.detach])
def test_a_closed_one_is_unusable(number, use):
    fd = fdpass.Fd(number)
    fd.close()
    with pytest.raises(fdpass.ClosedFd, match="closed"):
        use(fd)


def test_a_negative_number_is_refused():
    with pytest.raises(fdpass.ClosedFd, match="-1"):
        fdpass.Fd(-1)


def test_its_repr_says_the_state(number):
    fd = fdpass.Fd(number)
    assert repr(fd) == f"<Fd {number}>"
    fd.close()
    assert repr(fd) == "<Fd closed>"


def test_the_number_is_forgotten_before_closing_fails(number):
    fd = fdpass.Fd(number)
    os.close(number)
    with pytest.raises(OSError):
        fd.close()
    assert fd.closed
    fd.close()


def test_a_forgotten_one_is_closed_with_a_warning(number):
    fd = fdpass.Fd(number)
    with pytest.warns(ResourceWarning, match=f"unclosed <Fd {number}>"):
        del fd
    assert not is_open(number)


def test_a_forgotten_one_is_closed_when_the_globals_are_gone(number, monkeypatch):
    fd = fdpass.Fd(number)
    with monkeypatch.context() as patch:
        for name in ("os", "sys", "warnings", "ClosedFd"):
            patch.setattr(f"fdpass._fd.{name}", None)
        with pytest.warns(ResourceWarning):
            del fd
    assert not is_open(number)


def test_a_forgotten_one_is_silent_at_interpreter_shutdown():
    code = "import os, fdpass; kept = fdpass.Fd(os.dup(0)); cycle = [kept]; cycle.append(cycle)"
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code],
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stderr == b""


def test_closing_says_nothing_of_what_a_file_has_to_say_about_it(monkeypatch):
    really = os.close

    def failing(number):
        really(number)
        raise OSError(errno.EIO, "of a file system of a stranger's own")

    fd = fdpass.Fd(os.dup(0))
    number = fd.fileno()
    monkeypatch.setattr(os, "close", failing)
    fd.close()
    monkeypatch.undo()
    assert fd.closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_closing_what_somebody_else_has_closed_is_an_error():
    fd = fdpass.Fd(os.dup(0))
    os.close(fd.fileno())
    with pytest.raises(OSError, match="Bad file descriptor"):
        fd.close()
    assert fd.closed


def test_all_are_closed_though_one_of_them_fails():
    numbers = [os.dup(0) for _ in range(3)]
    os.close(numbers[0])
    deque(fdpass.lowlevel.closing_all(numbers), maxlen=0)
    for number in numbers:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
