"""Classes whose objects are records: the names of their fields, and how to take them apart."""

import sys
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple


class Form(NamedTuple):
    """How the objects of a class are taken apart, and made from the values of their fields."""

    cls: Any
    names: tuple[str, ...]
    values_of: Callable[[Any], Sequence[Any]]  # AttributeError if one is not set
    make: Callable[..., Any]
    exact: tuple[type, ...]  # the types of objects that are accepted

    def takes(self, record: Any) -> bool:
        """Whether an object is one of these; of a class derived from a NamedTuple, too."""
        # Another derived class may have more fields, which would be lost.
        return type(record) in self.exact or (tuple in self.exact and isinstance(record, self.cls))


def form_of(cls: Any) -> Form | None:
    """Return the form of a NamedTuple, dataclass, attrs class or msgspec.Struct; None of others.

    TypeError if its constructor does not take what it is taken apart to.
    """
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        # A plain tuple is accepted; a NamedTuple of another class is a mistake.
        return Form(cls, cls._fields, _itself, _tuples_of(cls), (cls, tuple))
    dataclasses = sys.modules.get("dataclasses")
    if dataclasses and dataclasses.is_dataclass(cls):
        names = tuple(field.name for field in dataclasses.fields(cls))
        return _form_of_attributes(cls, {name: name for name in names})
    attributes = getattr(cls, "__attrs_attrs__", None)
    if attributes is not None:
        return _form_of_attributes(cls, {each.name: _alias(each) for each in attributes})
    msgspec = sys.modules.get("msgspec")
    if msgspec and issubclass(cls, msgspec.Struct):
        return _form_of_attributes(cls, {name: name for name in cls.__struct_fields__})
    return None


def _alias(attribute: Any) -> str:
    """Return the parameter for an attribute of an attrs class; before 22.2 it did not say."""
    alias: str | None = getattr(attribute, "alias", None)
    return alias or str(attribute.name).lstrip("_")


def _itself(record: Any) -> Any:
    return record


def _tuples_of(cls: Any) -> Callable[..., Any]:
    new: Any = tuple.__new__  # what cls._make does

    def make(*values: Any) -> Any:
        return new(cls, values)

    return make


def _form_of_attributes(cls: Any, parameters: Mapping[str, str]) -> Form:
    """Return the form of a class, from the name of the parameter for each field."""
    names = tuple(parameters)
    make = _constructor(cls, parameters)
    if len(names) > 1:
        return Form(cls, names, attrgetter(*names), make, (cls,))
    if not names:
        return Form(cls, names, lambda _: (), make, (cls,))
    value_of = attrgetter(*names)

    def values_of(record: Any) -> tuple[Any]:
        return (value_of(record),)

    return Form(cls, names, values_of, make, (cls,))


def _constructor(cls: Any, parameters: Mapping[str, str]) -> Callable[..., Any]:
    """Return a function that makes an instance from the values of all fields in order."""
    import inspect  # noqa: PLC0415 (slow to import; dataclasses has done so)

    takes = inspect.signature(cls).parameters
    for name, parameter in parameters.items():
        if parameter not in takes:
            raise TypeError(f"field {name!r} of {cls.__name__} is not set by its constructor")
    wanted = list(parameters.values())
    for name in takes:
        if name not in wanted:
            raise TypeError(f"{cls.__name__} is made from {name!r}, which is not a field")
    if list(takes) == wanted and not any(p.kind is p.KEYWORD_ONLY for p in takes.values()):
        return cls  # type: ignore[no-any-return]

    def make(*values: Any) -> Any:
        return cls(**dict(zip(wanted, values, strict=True)))

    return make
