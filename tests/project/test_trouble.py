"""A RingError is of `_ring`: above it an application sees only what that means to its connection."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ipcqueue
import ipcqueue.lowlevel
import memenpsf
from ipcqueue._ring.slot_receiver import SlotReceiver
from tests.kit.trouble import NEVER, methods_that_raise, names_that_raise

REPOSITORY = Path(__file__).parent.parent.parent
ABOVE = sorted(
    str(path.relative_to(REPOSITORY))
    for package in ("ipcqueue", "memenpsf")
    for path in (REPOSITORY / package).rglob("*.py")
    if "_ring" not in path.parts
)
# Sending and BatchSending try for others, in a method of this name.
ATTEMPTS = {*methods_that_raise(), "attempt"}
# Functions that attempt something for one that handles RingError, and which one that is.
FOR_OTHERS = {
    ("ipcqueue/_link/receiving.py", "attempt"): "or_end",
    ("ipcqueue/_link/loans.py", "_lend"): "or_end",
    ("ipcqueue/_verbs.py", "_join"): "xmit, which calls what this keeps",
}
HANDLE_IT = {"or_end", "_until"}
# What has methods of the same names and is no end of a ring.
ENDPOINTS = {"endpoint", "_endpoint", "_gathering", "_open_endpoint", "self"}


def name_of(node):
    """The last name of `a.b`, `a.b()` and the like."""
    return (
        name_of(node.func)
        if isinstance(node, ast.Call)
        else vars(node).get("attr", vars(node).get("id"))
    )


def handles_it(node):
    return isinstance(node, ast.Try) and any(
        handler.type is not None and ast.unparse(handler.type) == "RingError"
        for handler in node.handlers
    )


def uses(module):
    """Yield each use of what may raise RingError: line, innermost function, and whether it is safe."""

    def search(node, function, safe):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function, safe = node.name, False
        if (
            isinstance(node, ast.Attribute)
            and node.attr in ATTEMPTS
            and name_of(node.value) not in ENDPOINTS
        ):
            yield node.lineno, function, safe
        passed = isinstance(node, ast.Call) and name_of(node) in HANDLE_IT
        guarded = node.body if handles_it(node) else []
        for child in ast.iter_child_nodes(node):
            yield from search(child, function, safe or passed or child in guarded)

    yield from search(ast.parse((REPOSITORY / module).read_text()), None, False)


def test_what_may_raise_it_is_found():
    found = methods_that_raise()
    assert {"offer", "offer_slowly", "try_pop", "lend_space", "end_borrowing", "indices"} <= found
    assert not found & {"look", "arm", "disarm", "has_space", "close", "units", "drop_strays"}
    assert {*NEVER} <= {*dir(SlotReceiver)}
    assert "attempt" in names_that_raise()


@pytest.mark.parametrize("module", ABOVE)
def test_no_call_lets_it_through(module):
    wrong = [
        f"{module}:{line} {function}()"
        for line, function, safe in uses(module)
        if not safe and (module, function) not in FOR_OTHERS
    ]
    assert wrong == []


def test_the_exceptions_to_that_are_there():
    unsafe = {(m, function) for m in ABOVE for _, function, safe in uses(m) if not safe}
    assert unsafe == {*FOR_OTHERS}
    safe = {function for m in ABOVE for _, function, is_safe in uses(m) if is_safe}
    assert safe >= {"offer", "_end", "_send", "push_rest", "try_pop"}


@pytest.mark.parametrize("module", ABOVE)
def test_who_handles_it_raises_what_it_means_and_not_in_the_handler(module):
    """Else the application would see it, as the context of its exception."""
    for node in ast.walk(ast.parse((REPOSITORY / module).read_text())):
        blocks = [vars(node).get(part) or [] for part in ("body", "orelse", "finalbody")]
        for block in blocks:
            for place, statement in enumerate(block if isinstance(block, list) else []):
                if not handles_it(statement):
                    continue
                handler = statement.handlers[0]
                assert ast.unparse(handler.body) == "trouble = error.args", handler.lineno
                after = ast.unparse(block[place + 1])
                assert "raise_meaning(*trouble, sending=" in after, statement.lineno


def test_it_is_no_word_of_an_application():
    for package in (ipcqueue, ipcqueue.lowlevel, memenpsf):
        assert "RingError" not in package.__all__
