"""What signatures are written with: above all T, the type of a connection's records.

A class as a spec (NamedTuple, dataclass, ctypes.Structure, Message, bytes) stands for its own
objects, an Encoded[T] for what it decodes to, a size (int) for bytes, a struct format for tuples,
a numpy.dtype for Any.  Every function that takes a spec says so in its overloads.  T is Any where
nobody states it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Protocol, TypeAlias

    # Of type checkers, which bring it along.
    from typing_extensions import Buffer as AnyBuffer
    from typing_extensions import TypeVar

    class NumpyScalar(Protocol):
        """A scalar of numpy, which is not imported here; many are received as an array."""

        @property
        def dtype(self) -> Any:
            """Its type."""

        @property
        def itemsize(self) -> int:
            """Its size in bytes."""

    class NumpyArray(Protocol):
        """An array of numpy; before Python 3.12 it does not tell checkers that it is a buffer."""

        @property
        def __array_interface__(self) -> Any:
            """What numpy tells other libraries of its memory."""

    class NumpyDtype(Protocol):
        """A numpy.dtype, told by what nothing else has."""

        @property
        def itemsize(self) -> int:
            """Its size in bytes."""

        @property
        def alignment(self) -> int:
            """Its alignment in bytes."""

        @property
        def isbuiltin(self) -> int:
            """Whether numpy has made it."""

    Buffer: TypeAlias = "AnyBuffer | NumpyArray"
    T = TypeVar("T", default=Any)
    N = TypeVar("N", bound=NumpyScalar)
    D = TypeVar("D")  # what recv(default=...) gives instead of a record
else:
    from typing import TypeVar

    T = TypeVar("T")  # for Generic; the others stand in annotations alone, which nobody evaluates
    Buffer = D = N = NumpyArray = NumpyDtype = NumpyScalar = object

__all__ = ["Buffer", "D", "N", "NumpyArray", "NumpyDtype", "NumpyScalar", "T"]
