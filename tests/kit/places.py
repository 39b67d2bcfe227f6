"""A signal at every place of a call where CPython looks for signals."""

import _thread
import contextlib
import dis
import os
import signal
import sys
from pathlib import Path

import pytest

TESTS = str(Path(__file__).parent.parent)

# A test at each of thousands of places takes too long for every run: these many are passed over,
# other ones by other tests.
STEP = 1 if os.environ.get("MEMENPSF_THOROUGH") else 5


class Interrupt(BaseException):
    """Like Ctrl-C, but nobody else's."""


class Mishap(Exception):
    """What a handler may raise, too: some raise TimeoutError, for instance."""


def interrupt(*arguments):
    raise Interrupt


def mishap(*arguments):
    raise Mishap


class Places:
    """Lets a signal arrive at the n-th place of a call after which CPython looks for signals.

    It is only noted there, by C code in one bytecode; when its handler runs is up to CPython: as
    it does for any signal, after the next call of something written in C, at the next beginning
    of a function, or at the next jump backwards.  Places in files of `apart` do not count.

    With `second`, another signal arrives at that place after the first has struck: in the code
    that recovers from it.
    """

    AFTER = ("CALL", "RESUME", "JUMP_BACKWARD", "POP_JUMP_BACKWARD")

    def __init__(self, nth, action, apart=(), second=None):
        self.left, self.action, self.arrived, self.second = nth, action, [], second
        self.late, self.postponed = False, []
        self.apart = (TESTS, *apart)

    def __call__(self, frame, event, arg):
        if not self.concerns(frame.f_code):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self.at(frame.f_code, frame.f_lasti)
        return self

    def at(self, code, offset):
        if self.concerns(code) and dis.opname[code.co_code[offset]].startswith(self.AFTER):
            self.left -= 1
            if self.late:
                self.late = False
                self.postponed += map(_thread.interrupt_main, (signal.SIGUSR1,))
            if self.left == -1:
                self.arrived += map(_thread.interrupt_main, (signal.SIGUSR1,))

    def concerns(self, code):
        for part in self.apart:  # noqa: SIM110 (in any() a signal would meet a frame of its own)
            if part in code.co_filename:
                return False
        return True

    def handle(self, _, frame):
        if frame.f_code in {Places.__call__.__code__, Places.at.__code__, Places.concerns.__code__}:
            # Nothing would look for signals here without a tracer: a plan that is closed begins with
            # what cleans up.  So at the next place.
            self.late = True
            return
        if self.second is None:
            self.stop()
        else:
            self.left, self.second = self.second, None
        self.action()

    def start(self):
        if sys.version_info >= (3, 13):  # where settrace() misses opcodes of what runs already
            events, tool = sys.monitoring.events, sys.monitoring.DEBUGGER_ID
            sys.monitoring.use_tool_id(tool, "places")
            sys.monitoring.register_callback(tool, events.INSTRUCTION, self.at)
            sys.monitoring.set_events(tool, events.INSTRUCTION)
        else:
            # CPython 3.12 asks at settrace() whether any frame wants its opcodes traced.
            sys._getframe().f_trace_opcodes = True
            sys.settrace(self)

    def stop(self):
        if sys.version_info >= (3, 13):
            if sys.monitoring.get_tool(sys.monitoring.DEBUGGER_ID) is not None:
                sys.monitoring.set_events(sys.monitoring.DEBUGGER_ID, 0)
                sys.monitoring.free_tool_id(sys.monitoring.DEBUGGER_ID)
        else:
            sys.settrace(None)

    def run(self, call):
        previous = signal.signal(signal.SIGUSR1, self.handle)
        try:
            self.start()
            try:
                return call()
            finally:
                self.stop()
        finally:
            signal.signal(signal.SIGUSR1, previous)


def _check_tracer():
    if sys.gettrace() is not None:
        pytest.skip("another tracer, of coverage perhaps, is at work")
    if sys.version_info >= (3, 13) and not os.environ.get("MEMENPSF_THOROUGH"):
        pytest.skip("CPython 3.13 and 3.14 leave some loops without their cleanup (gh-130279)")


def at_every_place(prepare, call, action, check, first=0, step=1, apart=()):
    """Run `call` once for each place, with `action` there; return how many places there are."""
    _check_tracer()
    for nth in range(first % step, 10_000, step):
        prepare()
        places = Places(nth, action, apart)
        result = None
        with contextlib.suppress(Interrupt, Mishap):
            result = places.run(call)
        check(result)
        if not places.arrived:
            return nth
    raise AssertionError("the call does not end")


def at_every_pair(prepare, call, action, check, first=0, step=1, apart=()):
    """Run `call` with `action` at each place, and again at each place after that until it ends.

    Return how many pairs of places there are: `action` raises, so the second is in the code that
    cleans up.
    """
    _check_tracer()
    pairs = 0
    for nth in range(first % step, 10_000, step):
        for second in range(10_000):
            prepare()
            places = Places(nth, action, apart, second)
            result = None
            with contextlib.suppress(Interrupt, Mishap):
                result = places.run(call)
            check(result)
            if len(places.arrived) < 2:
                break
            pairs += 1
        if not places.arrived:
            return pairs
    raise AssertionError("the call does not end")
