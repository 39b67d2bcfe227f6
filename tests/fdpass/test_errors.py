"""What the errors say, and what they are."""

import pickle

import pytest

import fdpass


def shown(side):
    if isinstance(side, range):
        return f"{side.start} to {side.stop - 1}"
    return side if isinstance(side, str) else repr(side)


@pytest.mark.parametrize(
    "error",
    [
        fdpass.WrongDescriptors(1, 3),
        fdpass.TruncatedDescriptors(2, 1),
        fdpass.WrongTag(b"ok", b"no"),
        fdpass.WrongType("a memory file", "a pipe"),
        fdpass.WrongSeals(fdpass.Seal.SHRINK, fdpass.Seal.GROW),
        fdpass.WrongSize(range(1, 11), 11),
        fdpass.NotReserved(4096, 0),
        fdpass.SharedRefused("frozen or lent", "shared"),
    ],
)
def test_a_mismatch_shows_both_sides_and_survives_pickling(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.expected, copy.received) == (error.expected, error.received)
    for side in (error.expected, error.received):
        assert shown(side) in str(copy)


def test_every_error_has_the_one_base():
    for name in fdpass.__all__:
        thing = getattr(fdpass, name)
        if isinstance(thing, type) and issubclass(thing, Exception):
            assert issubclass(thing, fdpass.FdPassError)


def test_errors_are_also_the_builtin_they_mean():
    assert issubclass(fdpass.Disconnected, EOFError)
    assert issubclass(fdpass.ClosedFd, ValueError)
    assert issubclass(fdpass.TruncatedDescriptors, fdpass.WrongDescriptors)
    assert issubclass(fdpass.RegionInUse, BufferError)
    assert issubclass(fdpass.ClosedRegion, ValueError)
    assert issubclass(fdpass.ClosedRegistry, ValueError)
    for refusal in (
        fdpass.WrongType,
        fdpass.WrongSeals,
        fdpass.WrongSize,
        fdpass.NotReserved,
        fdpass.SharedRefused,
    ):
        assert issubclass(refusal, fdpass.MemfdRefused)
