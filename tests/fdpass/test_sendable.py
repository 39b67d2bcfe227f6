"""What must not leave this process: pointers into it, and what masked arrays hide."""

from __future__ import annotations

import array
import ctypes
import mmap
import pickle
import socket
import sys

import numpy as np
import numpy.ma
import pytest

import fdpass
import fdpass.lowlevel


class Union(ctypes.Union):
    _fields_ = [("pointer", ctypes.c_void_p), ("number", ctypes.c_uint64)]


class Packed(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("byte", ctypes.c_uint8), ("pointer", ctypes.c_void_p)]


class Holder(ctypes.Structure):
    _fields_ = [("pointer", ctypes.c_void_p)]


class Nested(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int), ("unions", Union * 2)]


class Derived(Holder):
    _fields_ = [("y", ctypes.c_double)]


class Wide(ctypes.Structure):
    _fields_ = [("text", ctypes.c_wchar_p)]


class Bits(ctypes.Structure):
    _fields_ = [("few", ctypes.c_uint32, 3), ("more", ctypes.c_uint32, 29)]


class Harmless(ctypes.Structure):
    _fields_ = [("P", ctypes.c_int), ("O", ctypes.c_double), ("z", ctypes.c_char * 8)]


function = ctypes.CFUNCTYPE(None)
POINTERS = {
    "array of objects": np.array([print, None], dtype=object),
    "field of objects": np.zeros(2, dtype=[("n", "i8"), ("o", "O")]),
    "objects in arrays in a structure": np.zeros(1, dtype=[("a", [("b", "O", 2)])]),
    "one record with an object": np.zeros(1, dtype=[("o", "O")])[0],
    "c_void_p": ctypes.c_void_p(1),
    "c_void_p array": (ctypes.c_void_p * 1)(1),
    "array of arrays": ((ctypes.c_void_p * 2) * 2)(),
    "c_char_p": ctypes.c_char_p(b"x"),
    "c_char_p array": (ctypes.c_char_p * 1)(b"x"),
    "c_wchar_p": ctypes.c_wchar_p("x"),
    "POINTER": ctypes.pointer(ctypes.c_int(1)),
    "POINTER array": (ctypes.POINTER(ctypes.c_int) * 1)(),
    "py_object": ctypes.py_object(print),
    "function": function(print),
    "functions": (function * 1)(function(print)),
    "union": Union(),
    "packed structure": Packed(),
    "structure": Holder(),
    "nested unions": Nested(),
    "derived structure": Derived(),
    "wide text": Wide(),
    "union as a memoryview": memoryview(Union()),
    "union as bytes": memoryview(Union()).cast("B") if memoryview(Union()).ndim else None,
    "pickle buffer": pickle.PickleBuffer(Holder()),
}
POINTERS = {what: value for what, value in POINTERS.items() if value is not None}


def masked(values, mask, dtype=None):
    return numpy.ma.array(values, dtype, mask=mask)


def hiding():
    whole = masked([1, 2, 3], [0, 1, 0])
    return {
        "array": whole,
        "every second": masked([1, 0, 2], [0, 0, 1])[::2],
        "number": masked(5, True),
        "constant": numpy.ma.masked,
        "structures": masked([(1, 2.0)], [(1, 0)], "i4,f8"),
        "structure": masked([(1, 2.0)], [(0, 1)], "i4,f8")[0],
        "memoryview": memoryview(whole),
        "bytes of a memoryview": memoryview(whole).cast("B"),
        "pickle buffer": pickle.PickleBuffer(whole),
    }


@pytest.mark.parametrize("what", POINTERS)
def test_pointers_are_refused(what):
    with pytest.raises(fdpass.Unsendable, match="pointers into this process"):
        fdpass.lowlevel.exported(POINTERS[what])


@pytest.mark.parametrize("what", hiding())
def test_masked_values_are_refused(what):
    with pytest.raises(fdpass.Unsendable, match=r"masked values.*filled.*compressed"):
        fdpass.lowlevel.exported(hiding()[what])


@pytest.mark.parametrize(
    "data",
    [
        b"abc",
        bytearray(b"abc"),
        memoryview(b"abc")[1:],
        array.array("d", [1.0]),
        np.zeros((2, 3)),
        np.zeros(4, ">i4")[::2],
        np.zeros(2, "c16"),
        np.zeros(2, [("P", "c8"), ("O", "S3"), ("z", "V4")]),
        np.rec.array([(1, 2)], dtype="i4,i4"),
        np.float64(1.5),
        np.zeros(0),
        ctypes.c_double(1.5),
        (ctypes.c_int * 2)(1, 2),
        Harmless(),
        Bits(),
        pickle.PickleBuffer(b"abc"),
    ],
    ids=repr,
)
def test_what_says_all_that_it_is_may_go(data):
    view = fdpass.lowlevel.exported(data)
    assert view.tobytes() == memoryview(data).tobytes()


def test_a_mapping_may_go():
    with mmap.mmap(-1, 4096) as mapping, fdpass.lowlevel.exported(mapping) as view:
        assert len(view) == 4096


def test_a_masked_array_that_hides_nothing_may_go():
    assert fdpass.lowlevel.exported(masked([1, 2], False)).tolist() == [1, 2]
    assert fdpass.lowlevel.exported(masked([1, 2], [0, 0])).tolist() == [1, 2]
    fdpass.lowlevel.check_sendable(masked([(1, 2.0)], [(0, 0)], "i4,f8"))
    fdpass.lowlevel.check_sendable(masked([(1, 2.0)], [(0, 0)], "i4,f8")[0])
    assert not fdpass.lowlevel.is_masked(masked([1, 2], False))
    assert fdpass.lowlevel.is_masked(masked([1, 2], [0, 1]))


@pytest.mark.parametrize("thing", [None, 1, "text", object(), len, np.zeros(1), type])
def test_what_is_no_memory_is_nothing_to_refuse(thing):
    fdpass.lowlevel.check_sendable(thing)
    assert not fdpass.lowlevel.is_masked(thing)


@pytest.mark.parametrize("thing", [1, "text", None, object(), [1], len])
def test_what_has_no_memory_is_an_ordinary_error(thing):
    with pytest.raises(TypeError) as caught:
        fdpass.lowlevel.exported(thing)
    assert not isinstance(caught.value, fdpass.Unsendable)


def test_nothing_is_imported_to_find_out(monkeypatch):
    monkeypatch.delitem(sys.modules, "numpy.ma", raising=False)
    monkeypatch.delitem(sys.modules, "_ctypes")
    other = type("Other", (), {})()
    fdpass.lowlevel.check_sendable(other)
    assert "numpy.ma" not in sys.modules
    assert "_ctypes" not in sys.modules


@pytest.mark.parametrize("data", [Union(), masked([1, 2], [0, 1])], ids=["pointers", "masked"])
def test_none_goes_beside_descriptors(data):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(fdpass.Unsendable):
            fdpass.send_fds(ours, [0], data)
        with pytest.raises(fdpass.Unsendable):
            fdpass.send_fd(ours, 0, data)
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
