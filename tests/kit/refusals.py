"""System calls that fail for one thread: a seccomp filter, which the thread has until its end."""

import ctypes
import platform
import struct
import threading

import pytest

NUMBERS = {
    "x86_64": {
        "sendto": 44,
        "madvise": 28,
        "recvfrom": 45,
        "sendmsg": 46,
        "sched_getaffinity": 204,
    },
    "aarch64": {
        "sendto": 206,
        "madvise": 233,
        "recvfrom": 207,
        "sendmsg": 211,
        "sched_getaffinity": 123,
    },
}
NO_NEW_PRIVS, SECCOMP, FILTER = 38, 22, 2  # linux/prctl.h, linux/seccomp.h
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # linux/filter.h
ALLOW, ERRNO = 0x7FFF0000, 0x00050000


def _install(number, error, first):
    checks = [(0, number)] + ([] if first is None else [(16, first)])  # of struct seccomp_data
    steps = []
    for i, (offset, value) in enumerate(checks):
        to_the_end = 2 * (len(checks) - i) - 1
        steps += [(LOAD, 0, 0, offset), (EQUAL, 0, to_the_end, value)]
    steps += [(RETURN, 0, 0, ERRNO | error), (RETURN, 0, 0, ALLOW)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    what = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((NO_NEW_PRIVS, 1, 0, 0, 0), (SECCOMP, FILTER, what, 0, 0)):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def refused(call, error, function, first=None):
    """Call function() in a thread whose system calls `call` fail; return its result, or raise.

    `first`: only those with this first argument.
    """
    number = NUMBERS.get(platform.machine(), {}).get(call)
    if number is None:
        pytest.skip(f"the number of {call} on {platform.machine()} is not known here")
    outcome = {}

    def run():
        try:
            _install(number, error, first)
        except OSError as failure:
            outcome["skip"] = f"seccomp: {failure}"
            return
        try:
            outcome["result"] = function()
        except BaseException as failure:  # noqa: BLE001 (raised by the caller)
            outcome["failure"] = failure

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if "skip" in outcome:
        pytest.skip(outcome["skip"])
    if "failure" in outcome:
        raise outcome["failure"]
    return outcome["result"]
