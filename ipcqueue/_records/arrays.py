"""numpy dtypes and scalar types as specs."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any

from fdpass import Unsendable
from fdpass.lowlevel import check_sendable
from ipcqueue._errors import BadRecord

from .codec import (
    MASKED,
    NUMBERS_AND_TEXTS,
    TRUTH,
    Codec,
    are_plain,
    bad_record,
    check_values,
    encoder_of_many,
    loaded,
    normaliser_of,
    window_of,
)
from .layout import Layout, numpy_layout
from .names import numpy_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .codec import BytesLike

# numpy

_NUMPY_TAKES = {
    **dict.fromkeys("iub", "iub"),
    **dict.fromkeys("f", "fiub"),
    **dict.fromkeys("c", "cfiub"),
    **{kind: kind for kind in "MmSV"},
}


def numpy_codec(np: Any, spec: Any, dtype: Any) -> Codec:
    layout = numpy_layout(dtype)
    size = layout.size
    array = np.ndarray
    encode = _numpy_encode(np, dtype, layout)
    # A scalar with fields is a view of its buffer, so it needs a buffer of its own; a bytearray
    # makes it writable, too.  numpy copies numbers by itself.
    buffer: Any = bytearray if dtype.kind == "V" else memoryview
    normalise = normaliser_of(layout)

    def decode(view: BytesLike) -> Any:
        return array((), dtype, buffer(view))[()]

    def decode_many(data: BytesLike, count: int) -> Any:
        return array((count,), dtype, bytearray(window_of(data, size * count)))

    def adopt_many(data: bytearray, count: int) -> Any:
        return array((count,), dtype, data)

    if normalise is not None:

        def decode(view: BytesLike) -> Any:
            return adopt_many(bytearray(view), 1)[0]

        def decode_many(data: BytesLike, count: int) -> Any:
            return adopt_many(bytearray(window_of(data, size * count)), count)

        def adopt_many(data: bytearray, count: int) -> Any:
            normalise(data)
            return array((count,), dtype, data)

    def view(memory: memoryview) -> Any:
        if normalise is None or not memory.readonly:
            return np.frombuffer(memory, dtype)
        # Of the peer, which may write them at any time: numpy trusts that bools are 0 or 1, and
        # that they stay what they are while it uses them as an index.
        records = decode_many(memory, memory.nbytes // size)
        records.flags.writeable = False
        return records

    encode_many = _numpy_encode_many(np, dtype, layout, encode)
    arrays = None if dtype.shape else (array, dtype)  # an array of arrays has another dtype
    return Codec(
        spec,
        layout,
        size,
        encode,
        encode_many,
        decode,
        decode_many,
        view,
        adopt_many,
        arrays,
        names=numpy_names(dtype),
    )


def _numpy_encode(np: Any, dtype: Any, layout: Layout) -> Callable[[Any], bytes]:
    array, scalar, shape = np.ndarray, np.generic, dtype.shape

    def encode(record: Any) -> bytes:
        if isinstance(record, scalar):
            ready = record.dtype == dtype
        elif type(record) is array:  # an instance of a subclass may be masked
            ready = record.dtype == dtype.base and record.shape == shape
            ready = ready and record.flags.c_contiguous
        else:
            ready = False
        data: bytes = (record if ready else convert(record)).tobytes()
        return data

    def convert(record: Any) -> Any:
        out = np.zeros((), dtype)  # zeros, so that padding reveals nothing
        try:
            _numpy_fill(np, out, record)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise bad_record(layout, error, record) from None
        return out

    return encode


def _numpy_encode_many(
    np: Any, dtype: Any, layout: Layout, encode: Callable[[Any], bytes]
) -> Callable[[Iterable[Any]], tuple[BytesLike, int]]:
    one_by_one = encoder_of_many(encode)

    def encode_many(records: Any) -> tuple[BytesLike, int]:
        if not isinstance(records, np.ndarray):
            return convert_many(list(records))
        records = _plain_array(np, records, layout)
        if records.ndim == 0:
            raise BadRecord("expected many records, got an array of shape ()")
        if records.dtype != dtype.base or records.shape[1:] != dtype.shape:
            return convert_many(records)
        if not records.flags.c_contiguous:
            # Not with numpy's own copies: before numpy 2.5 they skip padding, so old memory there
            # would be sent.
            packed = np.zeros(records.shape, records.dtype)
            _copy_fields(packed, records)
            records = packed
        return memoryview(records.reshape(-1).view(np.uint8)), len(records)

    def convert_many(records: Any) -> tuple[BytesLike, int]:
        # Convert numbers and arrays all at once; if that fails, one by one, to name the index.
        if dtype.kind in "iufcb" or isinstance(records, np.ndarray):
            out = np.zeros(len(records), dtype)
            try:
                _numpy_fill(np, out, records)
            except (TypeError, ValueError, ArithmeticError):
                pass
            else:
                return memoryview(out.reshape(-1).view(np.uint8)), len(records)
        return one_by_one(records)

    return encode_many


def _numpy_fill(np: Any, out: Any, value: Any) -> None:
    """Assign one record, field by field; raise if numpy would cut, wrap or broadcast a value.

    Raises TypeError, ValueError or ArithmeticError, and for a field _Misfit, which names it;
    Unsendable, a TypeError, for masked values and for pointers.
    """
    names = out.dtype.names
    items: Iterable[Any]
    if names is None:
        _numpy_assign(np, out, value)
        return
    check_sendable(value)
    if isinstance(value, np.void | np.ndarray) and value.dtype == out.dtype:
        if value.shape != out.shape:
            raise ValueError(f"shape {value.shape} where {out.shape} is expected")
        _copy_fields(out, value)
        return
    if isinstance(value, np.void | np.ndarray) and value.dtype.names is not None:
        keys, items = names, _numpy_items(out, value)
    else:
        keys = range(len(out)) if out.ndim else names
        if not isinstance(value, (tuple, list) if out.ndim else tuple):
            kind = type(value).__name__
            raise TypeError(f"{kind} where a tuple of {len(keys)} items is expected")
        if len(value) != len(keys):
            raise ValueError(f"{len(value)} items where {len(keys)} are expected")
        items = value
    for key, item in zip(keys, items, strict=True):
        try:
            _numpy_fill(np, out[key, ...] if type(key) is int else out[key], item)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise _misfit(key, error) from None


class _Misfit(TypeError):
    """A value that does not fit the field at `path`, because of `why`."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"field {self.path!r}: {self.why}"


def _misfit(key: str | int, error: Exception) -> _Misfit:
    """Return the error for the field, or item, of which a part has raised this one."""
    rest, why = (error.path, error.why) if isinstance(error, _Misfit) else ("", str(error))
    own = key if isinstance(key, str) else f"[{key}]"
    return _Misfit(f"{own}.{rest}" if rest and rest[0] != "[" else f"{own}{rest}", why)


def _copy_fields(out: Any, given: Any) -> None:
    """Assign what has the same dtype, without its padding, which numpy copies from 2.5 on."""
    names = out.dtype.names
    if names is None:
        out[...] = given
        return
    for name in names:
        _copy_fields(out[name], given[name])


def _numpy_items(out: Any, value: Any) -> Iterator[Any]:
    """Return the fields of records of another dtype, by the names of ours."""
    names, given = out.dtype.names, value.dtype.names
    if value.shape != out.shape:
        raise ValueError(f"shape {value.shape} where {out.shape} is expected")
    odd = {*names} ^ {*given}
    for name in (*names, *given):
        if name in odd:
            what = "has no field" if name in names else "has another field,"
            raise TypeError(f"the {type(value).__name__} {what} {name!r}")
    return (value[name] for name in names)


def _numpy_assign(np: Any, out: Any, value: Any) -> None:
    """Assign to an array without fields; raise if numpy would cut, wrap or broadcast a value."""
    want = out.dtype.kind
    given = _numpy_given(np, value)
    if not isinstance(value, np.generic | np.ndarray) and (
        want in "SV" or given.dtype.kind not in _NUMPY_TAKES[want]
    ):
        # np.asarray turns [b"x", 1] into text and [1, 2**64 - 1] into floats: check the items.
        given = np.asarray(value, dtype=object)
        kinds: Any = bytes if want in "SV" else int | np.integer if want in "iub" else ()
        for item in given.flat:
            if not isinstance(item, kinds):
                raise _unexpected(type(item).__name__, item, out.dtype)
    elif given.dtype.kind not in _NUMPY_TAKES[want]:
        raise _unexpected(str(given.dtype), value, out.dtype)
    if given.shape != out.shape:
        raise ValueError(f"shape {given.shape} where {out.shape} is expected")
    (_check_unit if want in "Mm" else _check_lengths)(np, given, out.dtype)
    with np.errstate(over="raise"):  # a float too large for its field
        out[...] = given
    if want in "iub":
        kept = out == given
    elif want in "Mm":
        kept = (out.astype(given.dtype) == given) | np.isnat(given)
    else:
        return
    if want == "b" and not kept.all():
        raise _unexpected("", given.item(kept.argmin()), out.dtype)
    if not kept.all():
        raise ValueError(f"a value does not fit {out.dtype}")


def _unexpected(kind: str, value: Any, dtype: Any) -> TypeError:
    """Return the error for a value of another kind."""
    if dtype.kind == "b":
        return TypeError(f"{reprlib.repr(value)} where {TRUTH}")
    return TypeError(f"{kind} where {dtype} is expected")


def _numpy_given(np: Any, value: Any) -> Any:
    """Return a value as a plain array; raise Unsendable for masked values and for pointers."""
    if type(value) in NUMBERS_AND_TEXTS:
        return np.asarray(value)
    check_sendable(value)
    if MASKED in loaded:
        _check_items(np, value)
    # An object's __array__() may return a masked array, or one of pointers.
    given = np.asanyarray(value)
    if type(given) is not np.ndarray:
        check_sendable(given)
        given = np.asarray(given)
    if given.dtype.hasobject:
        if given.dtype.kind != "O":
            raise Unsendable(f"{given.dtype} holds pointers into this process")
        check_values(given.flat)
    return given


def _check_items(np: Any, value: Any) -> None:
    """Raise Unsendable if a sequence, or one nested in it, holds a masked value.

    An array made of it would have 0 or nan in its place.
    """
    if isinstance(value, list | tuple):
        if are_plain(value):
            return
    elif (
        isinstance(value, str | bytes | np.generic)
        or not (
            # An object with __array__() shows its mask in the array.
            hasattr(value, "__getitem__") and hasattr(value, "__len__")
        )
        or hasattr(value, "__array__")
    ):
        return
    for item in value:
        if type(item) not in NUMBERS_AND_TEXTS:
            check_sendable(item)
            _check_items(np, item)


def _plain_array(np: Any, records: Any, layout: Layout) -> Any:
    """Return an instance of an ndarray subclass as a plain array; raise BadRecord if masked."""
    if type(records) is np.ndarray:
        return records
    try:
        check_sendable(records)
    except Unsendable as error:
        raise BadRecord(f"expected records, {error}; a record is {layout.description}") from None
    return np.asarray(records)


def _check_unit(np: Any, given: Any, dtype: Any) -> None:
    """Raise TypeError for times whose unit says nothing of that of dtype.

    Those without a unit numpy would take to be in that of dtype.  Of a duration in years or months
    it would make one of mean years, 365.2425 days each.
    """
    unit, expected = (np.datetime_data(each)[0] for each in (given.dtype, dtype))
    months = {"Y", "M"}
    if unit == "generic":
        why = "without a unit"
        advice = "state its unit"
    elif dtype.kind == "m" and (unit in months) != (expected in months):
        why = f"of unit {unit}"
        advice = "a month has no fixed number of days"
    else:
        return
    if not np.isnat(given).all():
        name = given.dtype.type.__name__
        raise TypeError(f"a {name} {why} where {dtype} is expected: {advice}")


def _check_lengths(np: Any, given: Any, dtype: Any) -> None:  # noqa: ARG001 (as _check_unit)
    """Raise ValueError for texts that numpy would cut; numbers have no length."""
    if dtype.kind not in "SV":
        return
    lengths = map(len, given.flat) if given.dtype.kind == "O" else (given.dtype.itemsize,)
    for length in lengths:
        if length > dtype.itemsize or (dtype.kind == "V" and length < dtype.itemsize):
            raise ValueError(f"{length} bytes where {dtype.itemsize} are expected")
