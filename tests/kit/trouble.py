"""Which methods of the ends of rings may raise RingError, as their source says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

RING = Path(__file__).parent.parent.parent / "ipcqueue/_ring"
ENDS = {
    "sender.py": {"SenderEnd"},
    "slot_sender.py": {"SlotSender"},
    "frame_sender.py": {"FrameSender"},
    "receiver.py": {"ReceiverEnd"},
    "slot_receiver.py": {"SlotReceiver"},
    "frame_builder.py": {"FrameBuilder"},
    "frame_lending.py": {"FrameLender"},
    "frame_receiver.py": {"FrameReceiver"},
    "end.py": {"End"},
}
# In C, and what that calls of Python.
OF_C = {
    "offer": {*re.findall(r'slowly\(.*"(\w+)"', (RING.parent / "core/python/sender.c").read_text())}
}
# They call what may raise it, but never so.
NEVER = {"pop_ready": "by its fast path alone, which leaves all trouble to try_pop_many"}


def called(node):
    return {
        getattr(each.func, "id", getattr(each.func, "attr", None))
        for each in ast.walk(node)
        if isinstance(each, ast.Call)
    }


def raises_it(node):
    return any(
        isinstance(each, ast.Raise)
        and isinstance(each.exc, ast.Call)
        and getattr(each.exc.func, "id", None) in {"RingError", "corrupt"}
        for each in ast.walk(node)
    )


def names_that_raise():
    """Functions of `_ring` out of which RingError may come, by name; none of them catches it."""
    functions = [
        node
        for path in RING.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    found = {node.name for node in functions if raises_it(node)}
    calls = {}
    for node in functions:
        calls.setdefault(node.name, set()).update(called(node))
    calls |= OF_C
    before = None
    while found != before:
        before = found
        found = found | {n for n, c in calls.items() if c & found and n not in NEVER}
    return found


def methods_that_raise():
    """Public methods of ends of rings out of which RingError may come."""
    methods = set(OF_C)
    for name, classes in ENDS.items():
        for node in ast.parse((RING / name).read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name in classes:
                methods |= {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
    return {name for name in methods & names_that_raise() if not name.startswith("_")}
