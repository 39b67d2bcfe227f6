"""One thing goes wrong, once: in a system call, for want of descriptors, or for want of memory.

Started by test_faults.py with faults.c loaded first, as `python fault_cases.py '{"library": …}'`; the
answer is JSON, too.  This process is warm: everything is imported, and each scenario was run.  Then it
runs each case of a scenario in a forked child, and says which of them went wrong, and how.

A case is three words, by which it can be repeated alone:

    call     recvmsg:3 ENOMEM   the fourth recvmsg() of the scenario fails
    limit    2                  two more descriptors may be opened than are open in the beginning
    memory   5:17               the 18th allocation in step 5 of the scenario fails
"""

from __future__ import annotations

import ast  # noqa: F401 (traceback imports it when it is used: not without memory, which loses a file)
import collections
import contextlib
import ctypes
import errno
import faulthandler
import fcntl
import gc
import json
import mmap
import os
import random
import re
import resource
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from pathlib import Path

import fdpass
import ipcqueue
from tests.kit.settling import settle

PRODUCT = tuple(str(Path(p.__file__).parent) for p in (fdpass, ipcqueue))
PRODUCT += (str(Path(fdpass.__file__).parent.parent / "memenpsf"),)
SHORT = -1
HANGS = 30  # seconds for one case; the scenarios wait for 10 at most
FAILED = object()
"""What a step gives that raised."""

# What each may fail with, by its page of the manual, the kernel's source, and what a security
# module may say (EACCES, EPERM).  Not what only a wrong call gets (EBADF, EFAULT, ENOTSOCK, …).
_SHORTAGE = ("EMFILE", "ENFILE", "ENOMEM")
ERRORS = {
    "accept4": ("EINTR", "EAGAIN", "ECONNABORTED", "ENOBUFS", "EPERM", *_SHORTAGE),
    "bind": ("EADDRINUSE", "EACCES", "ENOMEM", "ENOSPC", "EROFS", "ENOENT"),
    "close": ("EINTR", "EIO", "ENOSPC", "EDQUOT"),
    "connect": ("EAGAIN", "ECONNREFUSED", "EACCES", "EPERM", "ENOENT", "ENOMEM", "EINTR"),
    "epoll_create1": _SHORTAGE,
    "epoll_ctl": ("ENOMEM", "ENOSPC", "EPERM"),
    "epoll_wait": ("EINTR",),
    "eventfd": _SHORTAGE,
    "fcntl": ("EACCES", "EPERM", "ENOMEM", "EINVAL", "EMFILE", "EBUSY"),
    "flock": ("EINTR", "EWOULDBLOCK", "ENOLCK", "ENOMEM"),
    "fstat": ("ENOMEM", "EACCES", "EIO", "EOVERFLOW"),
    "ftruncate": ("EINTR", "EFBIG", "EIO", "EPERM", "ENOMEM"),
    "getsockopt": ("ENOPROTOOPT", "ENOMEM", "EMFILE", "ENODATA", "EACCES"),
    "ioctl": ("ENOMEM", "EACCES"),
    "listen": ("EADDRINUSE", "EACCES"),
    "lstat": ("EACCES", "ENOENT", "ENOMEM", "EIO"),
    "madvise": ("EINVAL", "ENOMEM", "EAGAIN", "EFAULT"),
    "memfd_create": ("EINVAL", "EPERM", "EACCES", "ENOSYS", *_SHORTAGE),
    "mkdir": ("EEXIST", "EACCES", "ENOSPC", "EROFS", "EMLINK"),
    "mmap": ("ENOMEM", "EAGAIN", "EACCES", "EPERM", "ENODEV"),
    "open": ("EINTR", "EACCES", "ENOENT", "ELOOP", "EIO", *_SHORTAGE),
    "pipe2": _SHORTAGE,
    "poll": ("EINTR", "ENOMEM", "SHORT"),
    "posix_fallocate": ("EINTR", "ENOSPC", "ENOMEM", "EFBIG", "EOPNOTSUPP", "EACCES"),
    "pthread_create": ("EAGAIN",),
    "readlink": ("EACCES", "ENOENT", "ENOMEM"),
    "recv": ("EINTR", "EAGAIN", "ENOMEM", "ECONNRESET"),
    "recvmsg": ("EINTR", "EAGAIN", "ENOMEM", "ENOBUFS", "ECONNRESET", "SHORT"),
    "rename": ("EACCES", "EIO", "ENOSPC", "EROFS", "ENOENT"),
    # Not SHORT: two or four bytes leave a Unix socket together or not at all.
    "send": ("EINTR", "EAGAIN", "ENOBUFS", "ENOMEM", "EPIPE", "ECONNRESET"),
    "sendmsg": (
        "EINTR",
        "EAGAIN",
        "ENOBUFS",
        "ENOMEM",
        "EPIPE",
        "ECONNRESET",
        "ETOOMANYREFS",
        "EACCES",
    ),
    "setsockopt": ("ENOPROTOOPT", "ENOMEM", "EACCES"),
    "shutdown": ("ENOTCONN",),
    "socket": ("ENOBUFS", "EACCES", *_SHORTAGE),
    "socketpair": ("ENOBUFS", "EACCES", *_SHORTAGE),
    "stat": ("EACCES", "ENOENT", "ENOMEM", "EIO"),
    "unlink": ("EACCES", "EIO", "EROFS", "ENOENT"),
}
# Those by which a peer that lives seems to be gone.
GONE = {"EPIPE", "ECONNRESET", "ENOTCONN"}
ENDS = ipcqueue.EndOfStream, ipcqueue.ReceiverGone, ipcqueue.PeerDied
# And a server that does.
ABSENT = {"ECONNREFUSED", "ENOENT"}


class Library:
    """faults.c, as it was loaded."""

    CALLBACK = ctypes.PYFUNCTYPE(None, ctypes.c_int, ctypes.c_uint, ctypes.c_int)

    def __init__(self, path):
        library = ctypes.PyDLL(path)
        texts = (ctypes.c_char_p * 256).in_dll(library, "names")
        self.names = []
        while (text := texts[len(self.names)]) is not None:
            self.names.append(text.decode())
        self.arm, self.times = library.arm, library.times
        self._plan = library.plan
        self._plan.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_int, self.CALLBACK]

    def plan(self, function=-1, call=0, how=0, seen=None):
        self._seen = self.CALLBACK(0) if seen is None else self.CALLBACK(seen)  # kept
        self._plan(function, call, how, self._seen)


class Fault:
    """What goes wrong; nothing does by this one."""

    name = ""
    distrusts = False

    def begin(self):
        """Be ready, once."""

    def on(self, step):
        pass

    def off(self):
        pass

    def happened(self):
        return True

    def is_one_of(self, errors):
        """Whether it is a call that fails with one of these, by name."""
        return self.name.split(" ")[-1] in errors

    def explains(self, error):
        """Whether an error may come of it."""
        return False


class CallFails(Fault):
    def __init__(self, library, case):
        place, self.how = case.split()
        function, call = place.split(":")
        self.library, self.name, self.function = library, case, function
        how = SHORT if self.how == "SHORT" else getattr(errno, self.how)
        self.what = library.names.index(function), int(call), how
        # What a descriptor is, fcntl() says: where it does not, it is none that was expected.  Nor
        # is a memory file that this process is forbidden to ask, or to make keep its pages.
        self.distrusts = function == "fcntl" or (
            function in ("ftruncate", "posix_fallocate") and self.how in ("EPERM", "EACCES")
        )

    def begin(self):
        self.library.plan(*self.what)

    def on(self, step):
        self.library.arm(1)

    def off(self):
        self.library.arm(0)

    def happened(self):
        return self.library.times() > 0

    def explains(self, error):  # noqa: PLR0911 (a table)
        if isinstance(error, (*ENDS, fdpass.Disconnected)):
            return self.is_one_of(GONE)
        if isinstance(error, ipcqueue.CorruptPeer):
            # Where the peer seems to be gone when it is greeted, why is read from the socket.  One
            # that lives then misses the greeting, and hears what comes next instead.
            return self.distrusts or (self.function == "sendmsg" and self.is_one_of(GONE))
        if isinstance(error, ipcqueue.QueueError | fdpass.FdPassError):
            return not isinstance(error, ipcqueue.DescriptorsLost)
        if isinstance(error, TimeoutError) and error.errno is None:
            return self.function == "poll" and self.how == "SHORT"
        if isinstance(error, OSError):
            return error.errno in self.numbers()
        if type(error).__name__ == "BrokenResourceError":  # Trio's word
            return self.is_one_of(GONE)
        return isinstance(error, RuntimeError) and self.function == "pthread_create"

    def numbers(self):
        """Return the error numbers that may be told: that of the call, and what is made of it."""
        made = {
            ("connect", "EAGAIN"): (errno.EADDRINUSE,),  # somebody listens there
            ("connect", "EINTR"): (errno.EADDRINUSE,),
            ("madvise", "EFAULT"): (errno.ENOMEM,),  # so it says where a touch would be SIGBUS
            ("flock", "EWOULDBLOCK"): (errno.ETIMEDOUT,),
            ("open", "ELOOP"): (errno.EPERM,),  # a link in the place of a directory of ours
            # The file of a dead server, said to be gone, is there all the same.
            ("open", "ENOENT"): (errno.EADDRINUSE,),
            ("unlink", "ENOENT"): (errno.EADDRINUSE,),
        }
        return {self.what[2], *made.get((self.function, self.how), ())}


class FewDescriptors(Fault):
    def __init__(self, case):
        self.name, self.more, self.short = case, int(case), False

    def begin(self):
        free = os.dup(0)
        os.close(free)
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.low = min(free + self.more, self.limits[1])

    def on(self, step):
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.low, self.limits[1]))

    def off(self):
        resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)

    def happened(self):
        return self.short

    def explains(self, error):
        self.short = True
        if isinstance(error, OSError):
            return error.errno in (errno.EMFILE, errno.ETOOMANYREFS)
        # In a handshake: the descriptor of the other side did not get in, or that side has gone.
        told = ipcqueue.DescriptorsLost, ipcqueue.PeerDied, ipcqueue.CorruptPeer, ipcqueue.Refused
        return isinstance(error, (*told, fdpass.FdPassError, ipcqueue.Full))


_FORGETS = sys.version_info < (3, 12)


class NoMemory(Fault):
    PROBES = (None,) * 3

    def __init__(self, case):
        import _testcapi

        self.name = case
        self.step, self.nth = map(int, case.split(":"))
        self._set, self._remove = _testcapi.set_nomemory, _testcapi.remove_mem_hooks
        self._active = self._came = False

    def on(self, step):
        if step == self.step:
            self._active = self._came = True
            self._set(self.nth, self.nth + 1)

    def off(self):
        if self._active:
            self._active = False
            try:  # if it did not come in the step, it is still to come
                for _ in self.PROBES:
                    bytearray(100)
            except MemoryError:
                self._came = False
            self._remove()

    def happened(self):
        return self._came

    def explains(self, error):
        if isinstance(error, SystemError):  # no frame for a call, and CPython 3.11 does not say so
            return str(error) == "error return without exception set" and _FORGETS
        if isinstance(error, RuntimeError):  # what Python says of its own locks
            return str(error) == "can't allocate lock"
        return isinstance(error, MemoryError) or (
            isinstance(error, OSError) and error.errno == errno.ENOMEM
        )


class Beside(threading.Thread):
    """A thread that nothing goes wrong in; it may see what the other side makes of a fault."""

    def __init__(self, function):
        super().__init__(daemon=True)
        self.function, self.result, self.error = function, None, None
        self.start()

    def run(self):
        try:
            self.result = self.function()
        except (OSError, ipcqueue.QueueError, fdpass.FdPassError) as error:
            self.error = error

    def result_of(self):
        self.join(HANGS)
        return self.result


class Apart:
    """As Beside, but a process, which has limits of its own."""

    def __init__(self, function):
        self.result, self.error = None, None
        self.pipe, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
            result, error = None, None
            try:
                result = function()
            except BaseException as raised:  # noqa: BLE001 (told)
                error = repr(raised)
            with os.fdopen(write, "w") as pipe:
                json.dump([result and result.decode(), error], pipe)
            os._exit(0)
        os.close(write)

    def is_alive(self):
        return self.pid and not select.select([self.pipe], [], [], 0)[0]

    def join(self, timeout=None):
        if self.pid:
            with open(self.pipe) as pipe:  # noqa: PTH123 (a descriptor)
                result, self.error = json.load(pipe)
            self.result = result and result.encode()
            os.waitpid(self.pid, 0)
            self.pid = 0

    def result_of(self):
        self.join()
        return self.result


class Case:
    """One run of a scenario: it calls the product by do(), in which the fault is on."""

    def __init__(self, fault):
        self.fault = fault
        self.steps = 0
        self.problems = []
        self.told = []  # errors that were raised, and may be
        self._on, self._off = fault.on, fault.off

    def do(self, function, *arguments, **named):
        """Call it; FAILED if it raised what it may raise."""
        off = self._off
        self._on(self.steps)
        try:
            value = function(*arguments, **named)
            off()
        except Exception as error:  # noqa: BLE001 (judged)
            off()
            self.steps += 1
            self._judge(error)
            return FAILED
        self.steps += 1
        return value

    async def do_async(self, function, *arguments, **named):
        self._on(self.steps)
        try:
            value = await function(*arguments, **named)
            self._off()
        except Exception as error:  # noqa: BLE001 (judged)
            self._off()
            self.steps += 1
            self._judge(error)
            return FAILED
        self.steps += 1
        return value

    def _judge(self, error):
        if self.fault.explains(error):
            self.told.append(error.with_traceback(None))
            error.__context__ = error.__cause__ = None
        else:
            self.problem("".join(traceback.format_exception(error)))

    def beside(self, function):
        """Run a function at the same time, with nothing wrong there."""
        return (Apart if isinstance(self.fault, FewDescriptors) else Beside)(function)

    def problem(self, text):
        self.problems.append(text)

    def expect(self, truth, text):
        if not truth:
            self.problem(text)


class Flow:
    """What was sent and what came, in one direction."""

    def __init__(self, case, receive, count=None):
        self.case, self.receive = case, receive
        self.sent, self.got = [], []

    def send(self, record, function, *arguments, **named):
        """Send a record: it counts if the function returns."""
        value = self.case.do(function, *arguments, **named)
        if value is not FAILED:
            self.sent.append(record)
        return value

    def send_many(self, records, function, before, after):
        """Send several: as many count as the end says it has sent, whether this returns or raises."""
        start = before()
        self.case.do(function)
        self.sent += records[: after() - start]

    def take(self, function):
        """Take a record, None or a list of them."""
        value = self.case.do(function)
        if isinstance(value, list):
            self.got += value
        elif value is not FAILED and value is not None:
            self.got.append(value)
        return value

    def borrow(self, function, sender):
        """Borrow records: taken are those seen in a block that ended well, or that is in vain now."""
        seen, tail = [], sender.indices()[1]
        if self.case.do(function, seen) is not FAILED or sender.indices()[1] != tail:
            self.got += seen

    def check(self):
        """Take what is left, with nothing wrong any more: all must have come that was sent."""
        try:
            while (record := self.receive()) is not None:
                self.got.append(record)
        except ENDS:
            pass
        except (ipcqueue.DescriptorsLost, ipcqueue.CorruptPeer) as error:
            if isinstance(error, ipcqueue.CorruptPeer) and not self.case.fault.distrusts:
                self.case.problem(f"cannot be drained: {error!r}")
            if self.got != self.sent[: len(self.got)]:
                self.case.problem(f"sent {self.sent!r}, received {self.got!r}")
            return
        except ipcqueue.Closed as error:
            self.case.problem(f"cannot be drained: {error!r}")
        if self.got != self.sent:
            self.case.problem(f"sent {_brief(self.sent)}, received {_brief(self.got)}")


def _brief(records):
    return [record[:8] if isinstance(record, bytes) else record for record in records]


def state(directory):
    """Return all that a case must leave as it was."""
    gc.collect()
    settle()
    found = collections.Counter()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[f"fd {entry.name}: {entry.readlink()}"] += 1
    maps = Path("/proc/self/maps").read_text()
    found.update(f"mapping {m}" for m in re.findall(r"/memfd:\S+", maps))
    found["reservations of addresses"] = sum(type(o) is mmap.mmap for o in gc.get_objects())
    found.update(f"thread {t.name}" for t in threading.enumerate())
    found.update(f"file {path}" for path in Path(directory).iterdir())
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    found.update(f"child {pid}" for pid in children)
    return found


def run_one(scenario, fault, directory):
    """Run a scenario with a fault; return (what went wrong, whether the fault happened, errors)."""
    unraisable = []
    sys.unraisablehook = lambda u: unraisable.append(
        "".join(traceback.format_exception(u.exc_value)) + f"ignored in {u.object!r}"
    )
    threading.excepthook = lambda a: unraisable.append(
        "".join(traceback.format_exception(a.exc_value))
    )
    warnings.simplefilter("error")
    before = state(directory)
    case = Case(fault)
    fault.begin()
    try:
        scenario(case)
    except BaseException:  # noqa: BLE001 (told)
        case.problem("the scenario: " + traceback.format_exc())
    finally:
        fault.off()
    happened = fault.happened() or bool(case.told)
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join(HANGS)
    after = state(directory)
    # Not for want of memory: CPython 3.11 itself loses references, to the ring for instance, where
    # there is none to call a function.
    spared = ("mapping", "reservations") if isinstance(fault, NoMemory) else ()
    left = after - before
    case.problems += [f"left behind: {each}" for each in left if not each.startswith(spared)]
    # What says that it was forgotten did get closed, but by the garbage collector only; that will do
    # where a close() had no memory.  And where a finalizer fails, there is nobody it could tell.
    forgotten = not isinstance(fault, NoMemory)
    case.problems += [
        text
        for text in unraisable
        if (forgotten if "ResourceWarning" in text else not explained(fault, text))
    ]
    return case.problems, happened, [repr(e) for e in case.told], case.steps


def explained(fault, text):
    """Whether an exception that nobody could get is the fault itself."""
    if isinstance(fault, CallFails):
        return fault.how in text or f"[Errno {fault.what[2]}]" in text
    return isinstance(fault, NoMemory) and "MemoryError" in text


class Forked:
    """A case in a child."""

    def __init__(self, scenario, fault, directory):
        self.fault, self.started = fault, time.monotonic()
        read, write = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)
                os.close(read)
                os.dup2(write, 1)
                os.close(write)
                faulthandler.dump_traceback_later(HANGS, exit=True)
                answer = json.dumps(run_one(scenario, fault, directory)).encode()
                while answer:
                    answer = answer[os.write(1, answer) :]
            except BaseException:  # noqa: BLE001 (there is no other way out)
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(write)
        self.pipe = read

    def result(self):
        with open(self.pipe, "rb") as pipe:  # noqa: PTH123 (a descriptor)
            answer = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if not answer:
            return (
                [f"the process ended with {status}: it crashed, or hung for {HANGS} s"],
                True,
                [],
                0,
            )
        return json.loads(answer)


def sites_of(library, scenario):
    """Run it with nothing wrong; return {site: calls there}, each a (function, number, detail)."""
    sites = collections.defaultdict(list)

    def seen(function, call, detail):
        frame, where = sys._getframe(1), []
        while frame is not None and len(where) < 2:
            code = frame.f_code
            if code.co_filename.startswith(PRODUCT):
                path = Path(code.co_filename)
                where.append(f"{path.parent.name}/{path.name}:{frame.f_lineno}")
            frame = frame.f_back
        sites[(library.names[function], *where)].append((call, detail))

    class Watching(Fault):
        def begin(self):
            library.plan(seen=seen)

        def on(self, step):
            library.arm(1)

        def off(self):
            library.arm(0)

    return sites, Watching()


def errors_of(function, detail):
    if function == "fcntl":
        if detail == fcntl.F_DUPFD_CLOEXEC:
            return ("EMFILE",)
        if detail == 1033:  # F_ADD_SEALS
            return ("EPERM", "EINVAL", "EBUSY", "ENOMEM")
        return ("EACCES",)
    if function == "epoll_ctl" and detail == 2:  # EPOLL_CTL_DEL
        return ()
    return ERRORS[function]


# Calls of one place in the product that differ in how often it was there before: so many of them.
CALLS_OF_A_SITE = 2


def cases_of(sites, without=()):
    """Return the cases of all sites, in an order of their own."""
    for (function, *_), calls in sites.items():
        if function in without:
            continue
        for call, detail in calls[:CALLS_OF_A_SITE]:
            for how in errors_of(function, detail):
                if (function, how) in without:
                    continue
                yield f"{function}:{call} {how}"


class Runner:
    def __init__(self, library, scenario, directory, without=()):
        self.library, self.scenario, self.directory = library, scenario, directory
        self.without = without
        self.report = {"cases": 0, "happened": 0, "told": 0, "failures": [], "slowest": [0.0, ""]}

    def run(self, fault):
        forked = Forked(self.scenario, fault, self.directory)
        problems, happened, told, steps = forked.result()
        report = self.report
        report["cases"] += 1
        report["happened"] += bool(happened)
        report["told"] += bool(told)
        report["slowest"] = max(report["slowest"], [time.monotonic() - forked.started, fault.name])
        if problems:
            report["failures"].append([fault.name, problems, told])
        return happened, steps

    def calls(self, most, seed):
        """Cases in an order drawn with the seed, until the fault has happened in `most` of them."""
        sites, watching = sites_of(self.library, self.scenario)
        problems, *_ = run_one(self.scenario, watching, self.directory)
        if problems:
            raise AssertionError(f"nothing was wrong, and yet: {problems}")
        cases = list(cases_of(sites, self.without))
        self.report["sites"] = sorted(" < ".join(map(str, site)) for site in sites)
        self.report["all"] = len(cases)
        random.Random(seed).shuffle(cases)
        for case in cases:
            if self.report["happened"] == most:
                break
            fault = CallFails(self.library, case)
            # What another thread does decides on some calls whether they come.
            for _ in range(3):
                if self.run(fault)[0]:
                    break

    def limits(self):
        """From none at all up to as many as it needs."""
        enough = 0
        for more in range(200):
            happened, _ = self.run(FewDescriptors(str(more)))
            enough = 0 if happened else enough + 1
            if enough == 2:
                break

    def memory(self, stride, seed):
        """Each allocation of each step, or one in `stride`, up to one that nobody needs.

        Many allocations may fail without an error.  So that a sample meets one that may not, it is
        drawn again, and finer, until an error was told.
        """
        NoMemory.PROBES = (None,) * (stride + 2)
        _, _, _, steps = run_one(self.scenario, Fault(), self.directory)
        first = random.Random(seed)
        for step in range(steps):
            for nth in range(first.randrange(stride), 20_000, stride):
                if not self.run(NoMemory(f"{step}:{nth}"))[0]:
                    break
        if stride > 1 and not self.report["told"]:
            self.memory(stride // 2, seed + 1)


def main():
    from tests.reliability import fault_scenarios

    order = json.loads(sys.argv[1])
    library = Library(order["library"])
    faulthandler.enable()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["MEMENPSF_RUNTIME_DIR"] = directory
        fault_scenarios.DIRECTORY = directory
        (Path(directory) / "memenpsf").mkdir(mode=0o700)
        scenario, without = fault_scenarios.SCENARIOS[order["scenario"]]
        for _ in range(2):  # caches fill, modules come
            problems, *_ = run_one(scenario, Fault(), directory)
            if problems:
                raise AssertionError(f"nothing was wrong, and yet: {problems}")
        gc.collect()
        gc.freeze()  # what is here now is not looked through in each child
        runner = Runner(library, scenario, directory, without)
        kind = order["kind"]
        if only := order.get("only"):
            fault = (
                CallFails(library, only)
                if kind == "call"
                else (FewDescriptors(only) if kind == "limit" else NoMemory(only))
            )
            runner.run(fault)
        elif kind == "call":
            runner.calls(order["most"], order["seed"])
        elif kind == "limit":
            runner.limits()
        else:
            runner.memory(order["stride"], order["seed"])
        print(json.dumps(runner.report))


if __name__ == "__main__":
    main()
