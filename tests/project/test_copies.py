"""What owns descriptors, memory, a connection or locks is never copied: there can be only one owner.

A copy closes the same number, and so the file of whoever has it by then.  Values are copied and
pickled as any other; so are errors, with all that they say.
"""

import concurrent.futures
import contextlib
import copy
import dataclasses
import enum
import importlib
import inspect
import io
import mmap
import multiprocessing
import os
import pickle
import socket
import typing
from multiprocessing import resource_tracker
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Protocol

import pytest
import trio

import fdpass
import fdpass.lowlevel
import ipcqueue
import ipcqueue.lowlevel
import memenpsf
import memenpsf.trio
from fdpass import Fd, Memfd, MemoryRegion
from fdpass.lowlevel import Owner

REPOSITORY = Path(__file__).parent.parent.parent

# Classes that own nothing themselves.  What holds an owner refuses to be copied all the same,
# since a copy would have to copy that.
PLAIN = {
    "fdpass._region.Exporter": "a name for two types",
    "fdpass._rights.Incoming": "numbers and bytes",
    "fdpass._rights.Outgoing": "borrows its descriptors until they are sent",
    "ipcqueue._guesses.Guess": "a name and advice, of a class",
    "ipcqueue._ring.bounds.Budget": "numbers",
    "ipcqueue._ring.bounds.Pace": "numbers, and a function of the application",
    "ipcqueue._link.alarms.FalseAlarms": "numbers",
    "ipcqueue._link.control.ControlParser": "bytes that came",
    "ipcqueue._ring.frame_sender.FrameBatch": "messages of the application",
    "ipcqueue._link.ending.Ending": "bits, and exceptions",
    "ipcqueue._link.handshake.Greeting": "bytes that came",
    "ipcqueue._link.handshake.Role": "which ends there are",
    "ipcqueue._link.loans._Hold": "nothing but there or not",
    "ipcqueue._records.messages.MessageCodec": "two functions of the application",
    "ipcqueue._origin._Tag": "a weak reference",
    "ipcqueue._direct.RLock": "a lock, as those of threading",
    "memenpsf.asyncio._waiting.Follower": "a future of asyncio",
    "memenpsf.asyncio._waiting.Group": "a TaskGroup of asyncio",
    "memenpsf.trio._waiting.Follower": "an event of Trio",
    "memenpsf.trio._waiting.Group": "a nursery of Trio",
    "ipcqueue._link.plans.Rounds": "borrows its endpoint for one call of a verb",
    "ipcqueue._link.terms.Terms": "what the application asks for",
    "ipcqueue._link.waiters.Waiter": "what one thread waits for; borrows the lock it sleeps on",
    "ipcqueue._ring.sender.BatchSending": "holds an end of a ring",
    "ipcqueue._ring.end.Traffic": "numbers",
    "ipcqueue._ring.end.Place": "numbers; borrows what has the descriptors",
    "ipcqueue._ring.sender.Sending": "holds an end of a ring",
    "ipcqueue._ring.slot_sender.Batch": "records of the application",
    "ipcqueue._ring.slot_sender.Pieces": "records of the application",
    "ipcqueue._ring.slot_sender.SlotParcel": "a record of the application",
    "memenpsf._candidates.Conduct": "numbers",
    "memenpsf._candidates.Places": "numbers",
    "memenpsf._members.Turn": "borrows a member of a set",
    "memenpsf._dealing.Deck": "tasks of the caller",
    "memenpsf._dealing.Hand": "borrows an interface, and counts its tasks",
    "memenpsf._seeking._Search": "paths, and errors",
    "memenpsf.Ended": "an error, and records of the application",
    "memenpsf._tasks.blocks.Done": "nothing at all",
}


@dataclasses.dataclass
class Job:
    what: object


def pickled(protocol):
    return lambda thing: pickle.dumps(thing, protocol)


def by_python_pickler(thing):
    pickle._Pickler(io.BytesIO()).dump(thing)


WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "asdict": lambda thing: dataclasses.asdict(Job(thing)),
    "astuple": lambda thing: dataclasses.astuple(Job(thing)),
    "deepcopy of a list": lambda thing: copy.deepcopy([thing]),
    "ForkingPickler": ForkingPickler.dumps,
    "pickle in Python": by_python_pickler,
    "__reduce__": lambda thing: thing.__reduce__(),
} | {f"pickle {n}": pickled(n) for n in range(pickle.HIGHEST_PROTOCOL + 1)}


def classes():
    """Find every class of the three packages, public or not, by the full name that it shows."""
    found = {}
    for package in ("fdpass", "ipcqueue", "memenpsf"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            if path.stem in ("_build", "__main__"):
                continue
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            name = ".".join(parts[:-1] if path.stem == "__init__" else parts)
            module = importlib.import_module(name)
            for each in vars(module).values():
                if inspect.isclass(each) and each.__module__.partition(".")[0] == package:
                    found[f"{each.__module__}.{each.__qualname__}"] = each
    return found


CLASSES = classes()
OWNERS = {name: each for name, each in CLASSES.items() if issubclass(each, Owner)}
ERRORS = {name: each for name, each in CLASSES.items() if issubclass(each, BaseException)}


def is_value(each):
    """Whether it is a class of values by its nature: a NamedTuple, a TypedDict, an error, …"""
    if issubclass(each, tuple | enum.Enum | BaseException) or Protocol in each.__bases__:
        return True
    return typing.is_typeddict(each)


def test_every_class_refuses_copies_or_is_known_to_own_nothing():
    wrong = [
        name
        for name, each in CLASSES.items()
        if not (issubclass(each, Owner) or is_value(each) or name in PLAIN)
    ]
    assert wrong == [], "derive it from fdpass.lowlevel.Owner, or say in PLAIN why it owns nothing"
    assert len(OWNERS) > 30
    assert not {name for name in PLAIN if name in OWNERS}


# What can be handed to a child as multiprocessing starts it; it refuses at every other time.
HANDED = {("memenpsf.PipeEnd", "__reduce_ex__")}


@pytest.mark.parametrize("name", OWNERS)
def test_no_owner_overrides_how_it_refuses(name):
    for word in ("__copy__", "__deepcopy__", "__getstate__", "__reduce__", "__reduce_ex__"):
        if (name, word) in HANDED:
            continue
        mine = getattr(OWNERS[name], word, None)
        assert mine is getattr(object if word == "__getstate__" else Owner, word, None)


def unfinished(kind):
    if issubclass(kind, mmap.mmap):
        return kind(-1, 1)
    return kind.__new__(kind)


def refused(thing, way):
    with pytest.raises(TypeError) as caught:
        WAYS[way](thing)
    text = str(caught.value)
    assert "expected a value to copy or pickle, received " in text
    return text


@pytest.mark.parametrize("way", WAYS)
def test_every_owner_refuses_every_way_and_says_what_to_do_instead(way):
    for kind in OWNERS.values():
        text = refused(unfinished(kind), way)
        assert f"received {kind.__name__}," in text
        assert text.endswith(f": {kind._instead}")


# -- the real ones --------------------------------------------------------------------------------


@pytest.fixture
def owners():
    """Make one of each that a program has in its hands, open."""
    with contextlib.ExitStack() as stack:
        keep = stack.enter_context
        fd = keep(Fd(os.open(os.devnull, os.O_RDONLY)))
        memfd = keep(Memfd.create("one", 4096))
        registry = keep(fdpass.MemoryRegistry())
        lent = keep(registry.alloc(4096))
        region = keep(MemoryRegion.create(4096))
        shared = keep(MemoryRegion.create(4096, mode="shared"))
        mapping = keep(memfd.map())
        mappings = keep(contextlib.closing(fdpass.lowlevel.Mappings()))
        one, other = memenpsf.pair(bytes, accept=memenpsf.Accept(fds=1))
        keep(one)
        keep(other)
        sender, receiver = ipcqueue.pair("<Q")
        keep(sender)
        keep(receiver)
        sender.push((7,))
        with receiver.borrow() as borrowed, sender.loan(1) as loan:
            borrowing = borrowed.data
            assert len(borrowing) == 8
            everything = {
                "Fd": fd, "Memfd": memfd, "MemoryRegistry": registry, "lent": lent,
                "MemoryRegion": region, "shared": shared, "Mapped": mapping, "Mappings": mappings,
                "Interface": one, "Sender": sender, "Receiver": receiver, "loan": loan,
                "borrowing": borrowed,
            }  # fmt: skip
            yield everything
            del borrowing
            loan.cancel()


@pytest.mark.parametrize("way", WAYS)
def test_what_is_open_stays_open_and_has_one_owner(way, owners):
    for thing in owners.values():
        refused(thing, way)
    for name in ("Fd", "Memfd", "MemoryRegistry", "Interface", "Sender", "Receiver"):
        os.fstat(owners[name].fileno())
    assert owners["MemoryRegion"].buffer.nbytes == owners["lent"].buffer.nbytes == 4096


@pytest.mark.parametrize("way", WAYS)
def test_a_listener_refuses_in_both_doors(way, tmp_path):
    with memenpsf.listen(tmp_path / "here", "<Q") as listener:
        assert "address of its own" in refused(listener, way)

    async def in_trio():
        async with await memenpsf.trio.listen(tmp_path / "there", "<Q") as listener:
            assert "address of its own" in refused(listener, way)
        left, right = socket.socketpair()
        async with memenpsf.trio.Interface(left, "<Q") as one:
            async with memenpsf.trio.Interface(right, "<Q"):
                assert "give it the address" in refused(one, way)

    trio.run(in_trio)


def test_what_to_do_instead_is_said_where_it_matters():
    wanted = {
        Fd: "Fd(os.dup(fd.fileno()))",
        MemoryRegion: "descriptors()",
        fdpass.MemoryRegistry: "one in each process",
        memenpsf.Interface: "address",
        memenpsf.Loan: "inside the block",
    }
    for kind, words in wanted.items():
        assert words in kind._instead


def test_what_to_do_instead_works():
    with Fd(os.open(os.devnull, os.O_RDONLY)) as fd, Fd(os.dup(fd.fileno())) as other:
        assert other.fileno() != fd.fileno()


# -- messages -------------------------------------------------------------------------------------


@pytest.fixture
def received():
    """Receive a message with a descriptor and a region, and one with nothing."""
    one, other = memenpsf.pair(bytes, accept=memenpsf.Accept(fds=1))
    with one, other, MemoryRegion.create(4096) as region, Path(os.devnull).open() as file:
        one.xmit(b"whole", fds=[file], regions=[region])
        one.xmit(b"plain")
        messages = other.recv_message(), other.recv_message()
        yield messages
        messages[0].close()


@pytest.mark.parametrize("way", [way for way in WAYS if way != "__reduce__"])
def test_a_message_is_copied_only_without_what_it_owns(way, received):
    whole, plain = received
    numbers = [fd.fileno() for fd in whole.fds]
    with pytest.raises(TypeError, match="expected a value to copy or pickle"):
        WAYS[way](whole)
    assert [fd.fileno() for fd in whole.fds] == numbers
    os.fstat(numbers[0])
    assert bytes(whole.regions[0].buffer) == bytes(4096)
    WAYS[way](plain)


def test_a_copy_of_a_message_that_owns_nothing_is_the_same_message(received):
    _, plain = received
    for each in (copy.copy(plain), copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        assert each == plain
        assert type(each) is memenpsf.Received
    with pytest.raises(TypeError, match=r"take its \.record"):
        pickle.dumps(received[0])


# -- other processes ------------------------------------------------------------------------------


def nothing(*_):
    """Be called in another process."""


@pytest.fixture
def no_tracker_left():
    yield
    resource_tracker._resource_tracker._stop()  # a process that multiprocessing starts for itself


@pytest.mark.usefixtures("no_tracker_left")
def test_a_process_that_is_spawned_gets_none_of_it(owners):
    spawn = multiprocessing.get_context("spawn")
    for name in ("Fd", "Interface", "MemoryRegion", "MemoryRegistry", "Memfd"):
        process = spawn.Process(target=nothing, args=(owners[name],))
        with pytest.raises(TypeError, match="expected a value to copy or pickle"):
            process.start()


@pytest.mark.usefixtures("no_tracker_left")
def test_nor_does_a_pool_of_processes(owners):
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        for name in ("Fd", "Interface", "MemoryRegion"):
            with pytest.raises(TypeError, match="expected a value to copy or pickle"):
                pool.submit(nothing, owners[name]).result(60)
        assert pool.submit(nothing, 1).result(60) is None


# -- what is a value ------------------------------------------------------------------------------

VALUES = [
    ipcqueue.Message(b"x", 1, 2),
    fdpass.Credentials(1, 2, 3),
    fdpass.Returned(1, "tag", 3, 4.0),
    fdpass.Seal.SHRINK | fdpass.Seal.WRITE,
    ipcqueue.lowlevel.Event.RECORDS,
    memenpsf.Ended(memenpsf.EndOfStream("done")),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_copied_and_pickled(value):
    for each in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert type(each) is type(value)
        assert repr(each) == repr(value)


def made(kind):
    if issubclass(kind, fdpass._errors.Mismatch):
        return kind(range(1, 4097), fdpass.Seal.SHRINK)
    parameters = inspect.signature(kind.__init__).parameters.values()
    wanted = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
    return kind(*[5, "what went wrong"][: len(wanted)] if wanted else ["what went wrong"])


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_come_out_of_other_processes_with_all_they_say(name, protocol):
    error = made(ERRORS[name])
    error.__notes__ = ["a note"]
    for again in (
        pickle.loads(pickle.dumps(error, protocol)),
        copy.copy(error),
        copy.deepcopy(error),
    ):
        assert type(again) is type(error)
        assert (str(again), again.args) == (str(error), error.args)
        assert {**vars(again)} == {**vars(error)}


def test_so_do_those_of_a_real_connection(tmp_path):
    one, other = memenpsf.pair("<Q", timeout=5)
    with one, other:
        errors = []
        for fails in (lambda: one.xmit("x"), lambda: one.recv(timeout="x")):
            with pytest.raises(Exception) as caught:
                fails()
            errors.append(caught.value)
        other.close()
        with pytest.raises(memenpsf.EndOfStream) as ended:
            one.recv()
        errors.append(ended.value)
    with pytest.raises(memenpsf.Closed) as closed:
        one.recv()
    with pytest.raises(OSError) as absent:
        memenpsf.connect(tmp_path / "nobody", "<Q")
    errors += [closed.value, absent.value]
    for error in errors:
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))
