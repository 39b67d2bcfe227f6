"""What modules without the core say of it is what core/ring.h says, which is the only statement of it."""

import re
from pathlib import Path

import pytest
from ipcqueue._core import ffi, lib

import ipcqueue
from ipcqueue._link.control import Opcode
from ipcqueue._records import messages, names
from ipcqueue._ring import frame_sender, identity, outside

HEADER = Path(ipcqueue.__file__).parent / "core" / "ring.h"

SAME = {
    "IPCQ_LAYOUT_VERSION": identity.LAYOUT_VERSION,
    "IPCQ_BYTE_ORDER": identity.BYTE_ORDER,
    "IPCQ_HEADER_SIZE": identity.HEADER_SIZE,
    "IPCQ_MAX_NAMES": names.MAX_NAMES,
    "IPCQ_OUT_OF_LINE": messages.OUT_OF_LINE,
    "IPCQ_OUT_AGAIN": messages.OUT_AGAIN,
    "IPCQ_OUTSIDE": messages.OUTSIDE,
    "IPCQ_KNOWN_FLAGS": messages.OUTSIDE | messages.MAX_FLAGS,
    "IPCQ_OPCODE_WRITE": Opcode.WRITE,
    "IPCQ_OPCODE_READ": Opcode.READ,
    "IPCQ_OPCODE_FDS": Opcode.FDS,
}


@pytest.mark.parametrize("name", SAME)
def test_a_number_that_python_repeats_is_that_of_the_core(name):
    assert SAME[name] == getattr(lib, name)


def test_sizes_that_python_repeats_are_those_of_the_core():
    frame = {name: field.type for name, field in ffi.typeof("struct ipcq_frame").fields}
    assert (1 << 8 * ffi.sizeof(frame["tag"])) - 1 == messages.MAX_TAG
    assert 1 << 8 * ffi.sizeof(frame["size"]) == frame_sender.MAX_EXTENT
    assert ffi.sizeof("struct ipcq_outside") == outside.PLACE_SIZE
    assert ffi.sizeof("struct ipcq_names") == len(names.NO_NAMES.table)
    identity_type = dict(ffi.typeof("struct ipcq_identity").fields)
    assert len(identity.MAGIC) == ffi.sizeof(identity_type["magic"].type)
    assert identity.MAGIC.decode() in HEADER.read_text()


def test_no_other_number_of_the_core_is_said_twice():
    """A comment that promises so, `as in`, is a promise that nobody keeps."""
    for path in sorted(HEADER.parent.rglob("*.[ch]")):
        assert not re.search(r"as in _\w+/\w+\.py", path.read_text()), path.name
