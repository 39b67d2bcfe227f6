"""A signal at every place of a call where CPython looks for signals."""

import _thread
import contextlib
import dis
import os
import signal
import sys
from pathlib import Path

TESTS = str(Path(__file__).parent)
MONITORING = getattr(sys, "monitoring", None)

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
    """

    AFTER = ("CALL", "RESUME", "JUMP_BACKWARD", "POP_JUMP_BACKWARD")

    def __init__(self, nth, action, apart=()):
        self.left, self.action, self.arrived, self.over = nth, action, [], False
        self.apart = (TESTS, *apart)

    def concerns(self, code):
        return not self.over and not any(part in code.co_filename for part in self.apart)

    def at(self, code, offset):
        if self.concerns(code) and dis.opname[code.co_code[offset]].startswith(self.AFTER):
            self.left -= 1
            if self.left == -1:
                self.arrived += map(_thread.interrupt_main, (signal.SIGUSR1,))

    def __call__(self, frame, event, arg):
        if not self.concerns(frame.f_code):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self.at(frame.f_code, frame.f_lasti)
        return self

    def handle(self, *_):
        self.over = True
        self.action()

    def start(self):
        if MONITORING is None:
            sys.settrace(self)
        else:  # CPython 3.12 and later: settrace() misses opcodes of functions that run already
            events = MONITORING.events
            MONITORING.use_tool_id(MONITORING.DEBUGGER_ID, "places")
            MONITORING.register_callback(MONITORING.DEBUGGER_ID, events.INSTRUCTION, self.at)
            # As settrace() does it: whatever was noted in a function is handled before it returns.
            MONITORING.register_callback(
                MONITORING.DEBUGGER_ID, events.PY_RETURN, lambda *arguments: None
            )
            MONITORING.set_events(MONITORING.DEBUGGER_ID, events.INSTRUCTION | events.PY_RETURN)

    def stop(self):
        self.over = True
        if MONITORING is None:
            sys.settrace(None)
        else:
            MONITORING.set_events(MONITORING.DEBUGGER_ID, 0)
            MONITORING.free_tool_id(MONITORING.DEBUGGER_ID)

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


def at_every_place(prepare, call, action, check, first=0, step=1, apart=()):
    """Run `call` once for each place, with `action` there; return how many places there are."""
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
