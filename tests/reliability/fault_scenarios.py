"""What is done while something goes wrong: each verb of each layer, and what must be true after it.

A scenario calls the product by case.do(), and checks what came of it by calls with which nothing goes
wrong.  It must leave nothing behind, whatever happened.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import threading
import time
from pathlib import Path

import fdpass
import fdpass.lowlevel
import ipcqueue
import memenpsf
from fdpass import _memfd
from memenpsf import _gathering
from tests.kit.hostile import extent
from tests.reliability import fault_cases
from tests.reliability.fault_cases import FAILED, Beside, Flow

DIRECTORY = ""
PATIENCE = 10  # seconds

SPECS = {
    "slots": (8, lambda n: b"%08d" % n),
    "tuples": ("<QQ", lambda n: (n, n + 1)),
    "messages": (bytes, lambda n: b"%d" % n * (n % 7)),
}


@contextlib.contextmanager
def pair(spec, **options):
    one, other = memenpsf.pair(spec, **options)
    try:
        yield one, other
    finally:
        one.close()
        other.close()


def end(case, *interfaces):
    """Close them, which may fail; what it says must not keep it from closing."""
    for interface in interfaces:
        case.do(interface.close)
        case.expect(interface.closed, "close() did not close")


# -- records ----------------------------------------------------------------------------------


def records(shape):
    spec, record = SPECS[shape]

    def scenario(case):
        with pair(spec, capacity=8 if shape != "messages" else 4096) as (one, other):
            there = Flow(case, lambda: other.recv(timeout=0))
            back = Flow(case, lambda: one.recv(timeout=0))
            for n in range(1, 4):
                there.send(record(n), one.xmit, record(n), timeout=0)
            there.take(lambda: other.recv(timeout=0))
            there.take(lambda: other.recv(PATIENCE) if there.sent else None)
            for n in range(4, 6):
                back.send(record(n), other.xmit, record(n))
            batch = [record(n) for n in range(6, 9)]
            there.send_many(
                batch, lambda: one.xmit_many(batch, timeout=0), *[counter(one, shape, batch)] * 2
            )
            there.take(lambda: other.recv_vectored(timeout=0))
            back.take(lambda: one.recv_vectored(1, timeout=0))
            again = batch[:2]
            there.send_many(
                again,
                lambda: one.xmit_many(iter(again), timeout=0),
                *[counter(one, shape, again)] * 2,
            )
            loop = iter(other)
            case_of_loop(there, loop, other)
            case.do(other.arm)
            there.take(lambda: other.recv(timeout=0))
            there.check()
            back.check()
            end(case, one, other)

    return scenario


def counter(one, shape, batch):
    """Return a function that says how many records of a batch were sent since its first call."""
    sizes = [extent(len(record)) if shape == "messages" else 1 for record in batch]
    heads = []

    def count():
        heads.append(one.indices()[0])
        sent = heads[-1] - heads[0]
        return sum(end <= sent for end in itertools.accumulate(sizes))

    return count


def case_of_loop(flow, loop, other):
    if other._receiver.holds() or other.statistics().waiting:
        flow.take(lambda: next(loop))


def control(case):
    with pair(8) as (one, other):
        flow = Flow(case, other.recv_ctrl_msg)
        for n in range(4):
            flow.send(bytes((128, n)), one.send_ctrl_msg, bytes((128, n)), timeout=0)
            case.do(one.xmit, bytes(8))
            case.do(other.recv, timeout=0)
        flow.take(other.recv_ctrl_msg)
        flow.take(lambda: other.recv_ctrl_msg(timeout=0.001))
        flow.check()
        end(case, one, other)


def idle_sender(case):
    """One that has not heard of its peer for a while looks whether it is there."""
    for spec, record in (SPECS["slots"], SPECS["messages"]):
        with pair(spec) as (one, other):
            there = Flow(case, lambda other=other: other.recv(timeout=0))
            time.sleep(0.06)
            there.send(record(1), one.xmit, record(1), timeout=0)
            time.sleep(0.06)
            batch = [record(2)] * 2
            there.send_many(
                batch,
                lambda one=one, batch=batch: one.xmit_many(batch, timeout=0),
                *[counter(one, "messages" if spec is bytes else "", batch)] * 2,
            )
            there.check()
            end(case, one, other)


# -- sleeping ---------------------------------------------------------------------------------


def asleep(interface, over):
    """Wait until another thread sleeps on it, or has returned."""
    before = interface.statistics().waits
    return lambda: _until(lambda: interface.statistics().waits > before, over)


def _until(true, over):
    while not true() and not over.is_set():
        time.sleep(0.0005)


def sleeping_receiver(case):
    for spec, record in (SPECS["slots"], SPECS["messages"]):
        with pair(spec, wait="sleep") as (one, other):
            there, over = Flow(case, lambda other=other: other.recv(timeout=0)), threading.Event()
            wait = asleep(other, over)

            def send(one=one, wait=wait, record=record):
                wait()
                one.xmit(record(1))

            thread = Beside(send)
            there.take(lambda other=other: other.recv(PATIENCE))
            over.set()
            thread.result_of()
            there.sent.append(record(1))
            there.check()
            end(case, one, other)


def doorbell(case):
    """The sender rings for a receiver that sleeps."""
    for spec, record in (SPECS["slots"], SPECS["messages"]):
        with pair(spec, wait="sleep") as (one, other):
            over = threading.Event()
            wait = asleep(other, over)
            thread = Beside(lambda other=other: other.recv(PATIENCE))
            wait()
            sent = case.do(one.xmit, record(1)) is not FAILED
            if not sent:
                one.xmit(record(1))
            case.expect(
                thread.result_of() == record(1), f"woken for {thread.result!r} {thread.error!r}"
            )
            end(case, one, other)


def sleeping_sender(case):
    with pair(8, capacity=1, wait="sleep") as (one, other):
        there, over = Flow(case, lambda: other.recv(timeout=0)), threading.Event()
        first, second = b"%08d" % 1, b"%08d" % 2
        one.xmit(first)
        there.sent.append(first)
        wait = asleep(one, over)

        def receive():
            wait()
            there.got.append(other.recv())

        thread = Beside(receive)
        there.send(second, one.xmit, second, timeout=PATIENCE)
        over.set()
        thread.result_of()
        there.check()
        end(case, one, other)


def space_bell(case):
    """The receiver rings for a sender that sleeps."""
    with pair(8, capacity=1, wait="sleep") as (one, other):
        over = threading.Event()
        there = Flow(case, lambda: other.recv(timeout=0))
        first, second = b"%08d" % 1, b"%08d" % 2
        one.xmit(first)
        wait = asleep(one, over)
        thread = Beside(lambda: one.xmit(second, PATIENCE))
        wait()
        there.take(lambda: other.recv(timeout=0))
        if not there.got:
            there.got.append(other.recv())
        thread.result_of()
        case.expect(thread.error is None, f"the sender: {thread.error!r}")
        there.sent += [first, second]
        there.check()
        end(case, one, other)


def control_in_a_full_socket(case):
    with pair(8, wait="sleep") as (one, other):
        flow, over = Flow(case, other.recv_ctrl_msg), threading.Event()
        n = 0
        with contextlib.suppress(ipcqueue.Full):
            while True:
                message = bytes((128 + n // 256, n % 256))
                one.send_ctrl_msg(message, timeout=0)
                flow.sent.append(message)
                n += 1

        def receive():
            time.sleep(0.005)
            while (message := other.recv_ctrl_msg()) is not None:
                flow.got.append(message)

        thread = Beside(receive)
        flow.send(b"\xff\xff", one.send_ctrl_msg, b"\xff\xff", timeout=PATIENCE)
        over.set()
        thread.result_of()
        flow.check()
        end(case, one, other)


# -- what messages carry ----------------------------------------------------------------------


def closing(received):
    """Close what came with a message; return its record."""
    if received is None:
        return None
    received.close()
    return received.record


def attachments(case):
    with contextlib.ExitStack() as undo:
        one, other = undo.enter_context(
            pair(bytes, accept=memenpsf.Accept(fds=3, regions=3, sockets=True))
        )
        there = Flow(case, lambda: closing(other.recv_message(timeout=0)))
        file = undo.enter_context(Path(os.devnull).open())
        sock, _ = (undo.enter_context(each) for each in socket.socketpair())
        registry = undo.enter_context(fdpass.MemoryRegistry())
        lent = undo.enter_context(registry.alloc(4096))
        frozen = undo.enter_context(fdpass.MemoryRegion.create(4096))
        frozen.buffer[:5] = b"hello"
        lent.buffer[:5] = b"world"

        def receive():
            received = case.do(other.recv_message, timeout=0)
            if received is None or received is FAILED:
                return
            there.got.append(received.record)
            case.expect(
                (len(received.fds), len(received.regions)) == wanted[received.record],
                f"{received.record} came with {received.fds} and {received.regions}",
            )
            for region in received.regions:
                start = case.do(lambda region=region: bytes(region.buffer[:5]))
                case.expect(start in (FAILED, b"hello", b"world"), f"another region: {start!r}")
            case.do(received.close)

        def borrow(seen):
            with other.borrow(timeout=0) as messages:
                seen += [bytes(message.data) for message in messages]
                messages.data = ()

        def send():
            for name, (fds, regions) in {
                b"two": ([file, sock], []),
                b"regions": ([], [frozen, lent]),
                b"all": ([file], [frozen]),
            }.items():
                wanted[name] = len(fds), len(regions)
                there.send(name, one.xmit, name, timeout=0, fds=fds, regions=regions)

        wanted = {}
        send()
        receive()
        receive()
        receive()
        send()
        there.take(lambda: other.recv(timeout=0))
        there.take(lambda: other.recv_vectored(timeout=0))
        send()
        there.borrow(borrow, one)
        there.borrow(borrow, one)
        there.check()
        end(case, one, other)
        case.do(frozen.close)
        case.do(lent.close)
        case.do(registry.collect)
        case.do(registry.close)


def outside(case):
    with pair(bytes, capacity=4096, inline=512) as (one, other):
        there = Flow(case, lambda: other.recv(timeout=0))
        large, larger = b"L" * 3000, b"M" * 200_000
        for message in (large, larger):
            there.send(message, one.xmit, message, timeout=0)
        there.take(lambda: other.recv(timeout=0))
        there.take(lambda: other.recv(timeout=0))
        again = b"N" * 3000
        there.send(again, one.xmit, again, timeout=0)
        there.take(lambda: other.recv_vectored(timeout=0))
        batch = [b"small", large, b"after"]
        start = one.indices()[0]
        case.do(one.xmit_many, batch, timeout=0)
        there.sent += batch[: (one.indices()[0] - start) // 32]

        def borrow(seen):
            with other.borrow(timeout=0) as messages:
                seen += [bytes(message.data) for message in messages]
                messages.data = ()

        there.borrow(borrow, one)
        there.check()
        end(case, one, other)


def loans(shape):
    spec, record = SPECS[shape]

    def scenario(case):
        with pair(spec, capacity=8 if shape == "slots" else 4096) as (one, other):
            there = Flow(case, lambda: other.recv(timeout=0))

            def lend(n):
                data = record(n)
                with one.loan(1 if shape == "slots" else len(data), timeout=0) as loan:
                    loan.data[:] = data

            def borrow(seen):
                with other.borrow(timeout=0) as borrowed:
                    if shape == "slots":
                        data = bytes(borrowed.data)
                        seen += [data[at : at + 8] for at in range(0, len(data), 8)]
                    else:
                        seen += [bytes(message.data) for message in borrowed]
                    borrowed.data = ()

            for n in range(1, 4):
                there.send(record(n), lend, n)
            there.borrow(borrow, one)
            for n in range(4, 7):
                there.send(record(n), lend, n)
            there.take(lambda: other.recv(timeout=0))
            there.borrow(borrow, one)
            there.check()
            end(case, one, other)

    return scenario


# -- many at once -----------------------------------------------------------------------------


class Gathered:
    """What a set returned, by its source; errors in place of records are judged as raised ones."""

    def __init__(self, case):
        self.case, self.of, self.clients = case, {}, []

    def note(self, pairs):
        for source, record in pairs:
            if isinstance(record, ipcqueue.EndOfStream):
                self.of.setdefault(source, []).append("end")
            elif isinstance(record, Exception):
                self.case._judge(record)
            elif isinstance(record, memenpsf.Interface):
                self.clients.append(record)
            else:
                self.of.setdefault(source, []).append(record)

    def have_lost(self):
        """Whether a peer that lives seemed to be gone, or it was told that descriptors were lost."""
        lost = any(isinstance(error, ipcqueue.DescriptorsLost) for error in self.case.told)
        return lost or self.case.fault.is_one_of(fault_cases.GONE)

    def take(self, call, *arguments, **named):
        got = self.case.do(call, *arguments, **named)
        if isinstance(got, tuple):
            self.note([got])
        elif got is not FAILED and got is not None:
            self.note((source, record) for source, records in got for record in records)

    async def take_async(self, call, *arguments, **named):
        got = await self.case.do_async(call, *arguments, **named)
        if got is not FAILED and got is not None:
            self.note([got])

    def drain(self, readers, wanted):
        """Take what is left, with nothing wrong any more, until all that is wanted has come."""
        until = time.monotonic() + 2
        while sum(map(len, self.of.values())) < wanted and time.monotonic() < until:
            if (got := readers.recv(timeout=0.1)) is not None:
                self.note([got])
        if (got := readers.recv(timeout=0)) is not None:
            self.case.problem(f"and then {got!r}")


def made(case, call, *arguments, **named):
    """Call it with the fault on, and once more if that failed."""
    value = case.do(call, *arguments, **named)
    return call(*arguments, **named) if value is FAILED else value


def members(case):
    """Of a set of connections: they come, send, have something read beside, end and are removed."""
    _gathering.RESCUE = 3600.0  # what is found by looking again was lost
    with pair(8, wait="sleep") as (one, to_one), pair(bytes, capacity=4096) as (two, to_two):
        gathered, sent = Gathered(case), {one: [], two: []}

        def send(n):
            for here, there, record in ((one, to_one, b"%08d" % n), (two, to_two, b"m" * n)):
                there.xmit(record)
                sent[here].append(record)

        readers = made(case, memenpsf.ReceiverSet, [one])
        if case.do(readers.add, two) is FAILED and two not in readers:
            readers.add(two)
        gathered.take(readers.recv, timeout=0)
        for n in range(1, 3):
            send(n)
            gathered.take(readers.recv, timeout=0)
            gathered.take(readers.recv_vectored, timeout=0)
            gathered.take(readers.recv, timeout=0)
        to_one.send_ctrl_msg(b"\x80\x01")
        send(3)
        case.do(one.recv_ctrl_msg)
        gathered.take(readers.recv, timeout=0)
        to_two.xmit(large := bytes(200_000))
        sent[two].append(large)
        gathered.take(readers.recv, timeout=0)
        gathered.drain(readers, sum(map(len, sent.values())))
        if len(readers) == 2:  # else a peer seemed to be gone
            case.do(readers.remove, one)
            if one in readers:
                readers.remove(one)
            if case.do(readers.add, one) is FAILED and one not in readers:
                readers.add(one)
            send(4)
            to_two.close()
            sent[two].append("end")
            gathered.take(readers.recv, timeout=0)
            gathered.take(readers.recv_vectored, timeout=0)
            gathered.drain(readers, sum(map(len, sent.values())))
        if not gathered.have_lost():
            case.expect(len(readers) == 1, f"{readers}")
            case.expect(gathered.of == sent, f"sent {_told(sent)}, received {_told(gathered.of)}")
        else:
            for here, records in gathered.of.items():
                case.expect(records == sent[here][: len(records)], f"received {_told(gathered.of)}")
        end(case, readers)
        watches = one._endpoint.waiters.watches
        case.expect(not watches, f"after close(): {watches}")


def _told(flows):
    return [fault_cases._brief(records) for records in flows.values()]


def sleeping_set(case):
    _gathering.RESCUE = 3600.0
    with pair(8, wait="sleep") as (one, there), memenpsf.ReceiverSet([one]) as readers:
        gathered, over = Gathered(case), threading.Event()

        def send():
            _until(lambda: readers._gathering._waiting, over)
            there.xmit(b"the same")

        thread, began = Beside(send), time.monotonic()
        gathered.take(readers.recv, PATIENCE)
        over.set()
        thread.result_of()
        case.expect(time.monotonic() < began + PATIENCE / 2, "nobody woke it")
        if one in readers:
            gathered.drain(readers, 1)
        gone = case.fault.is_one_of(fault_cases.GONE)
        case.expect(gone or gathered.of == {one: [b"the same"]}, f"received {gathered.of}")


def clients_of_a_set(case):
    """A listener in a set goes on after anything that happens, and so do those who joined."""
    address = str(Path(DIRECTORY) / "set")
    _gathering.RESCUE = 3600.0

    def client():
        for _ in range(5):  # what happens to the server may be told to this one
            with contextlib.suppress(ipcqueue.QueueError, OSError):
                with memenpsf.connect(address, 8, timeout=PATIENCE) as interface:
                    interface.xmit(b"the same")
                    return interface.recv(PATIENCE)
        return b""

    with memenpsf.listen(address, 8) as listener, memenpsf.ReceiverSet() as readers:
        gathered, began = Gathered(case), time.monotonic()
        if case.do(readers.add, listener, clients=True) is FAILED and listener not in readers:
            readers.add(listener, clients=True)
        answered = set()
        for _ in range(2):
            thread = case.beside(client)
            for attempts in itertools.count():
                if attempts < 6:
                    gathered.take(readers.recv, timeout=0.02)
                elif (got := readers.recv(timeout=0.02)) is not None:
                    gathered.note([got])
                for source in gathered.of.keys() - answered:
                    answered.add(source)
                    with contextlib.suppress(ipcqueue.QueueError):  # it has seen an end
                        source.xmit(b"answered")
                if not thread.is_alive() or time.monotonic() > began + 2 * PATIENCE:
                    break
            case.expect(thread.result_of() == b"answered", f"the client: {thread.result!r}")
        gathered.drain(readers, 4)
        case.told += ["logged"] * listener.refused
        served = [each for each in gathered.of.values() if each == [b"the same", "end"]]
        gone = case.fault.is_one_of(fault_cases.GONE)
        case.expect(gone or len(served) >= 2, f"received {_told(gathered.of)}")
        case.expect(gathered.of.keys() <= {*gathered.clients}, "of a client that nobody told of")
        case.expect(all(each.closed for each in gathered.clients), "one is left open")
        case.expect(listener in readers, "the listener has left")
        case.do(readers.close)
        case.expect(readers.closed, "close() did not close")


def waiting_for_many(case):
    with pair(8, wait="sleep") as (one, there), pair(8) as (two, _):
        sock, other = socket.socketpair()
        with sock, other:
            gone = case.fault.is_one_of(fault_cases.GONE)  # which is ready, too
            for _ in range(2):
                ready = case.do(memenpsf.wait, [one, sock], timeout=0)
                case.expect(gone or ready in ([], FAILED), f"ready: {ready}")
            there.xmit(bytes(8))
            ready = made(case, memenpsf.wait, [two, sock, one], timeout=PATIENCE)
            case.expect(gone or ready == [one], f"ready: {ready}")
            thread = Beside(lambda: other.send(b"x"))
            ready = case.do(memenpsf.wait, [two, sock], timeout=PATIENCE)
            thread.result_of()
            short = case.fault.is_one_of(("SHORT",))
            case.expect(gone or short or ready in ([sock], FAILED), f"ready: {ready}")
            case.expect(not one._endpoint.waiters.watches, "it watches still")


# -- the beginning and the end ----------------------------------------------------------------


def opening(spec, **options):
    def scenario(case):
        _memfd._device_of_memfds.cache_clear()
        both = case.do(memenpsf.pair, spec, **options)
        if both is not FAILED:
            one, other = both
            there = Flow(case, lambda: other.recv(timeout=0))
            there.send(bytes(8), one.xmit, bytes(8))
            there.check()
            end(case, one, other)

    return scenario


def orderly_end(case):
    _the_end(case, ipcqueue.EndOfStream, lambda one: case.do(one.close))


def finishing(case):
    _the_end(case, ipcqueue.EndOfStream, lambda one: case.do(one.finish))


def sudden_end(case):
    def die(one):
        # As the kernel ends a process: its descriptors go, and no word is said.
        one._endpoint.closed = True
        one._endpoint.wire.release()
        one._endpoint._release()

    _the_end(case, ipcqueue.PeerDied, die)


def _the_end(case, kind, finish):
    for spec, record in (SPECS["slots"], SPECS["messages"]):
        with pair(spec, **({"accept": memenpsf.Accept(fds=1)} if spec is bytes else {})) as (
            one,
            other,
        ):
            sent = [record(1), record(2)]
            got = []
            fds = {}
            if spec is bytes:
                fds["fds"] = [one._endpoint._own.memfd]
            one.xmit(sent[0])
            one.xmit(sent[1], **fds)
            finish(one)
            # The end of a fault is not the end of the stream.
            for _ in range(20):
                value = _or_end(case, kind, lambda other=other: other.recv(PATIENCE))
                if value is kind:
                    break
                if value is not FAILED:
                    got.append(value)
            else:
                case.problem(f"the end never came, but {got}")
            case.expect(got == sent, f"sent {sent}, received {got}")
            for _ in range(3):  # a peer that is gone is found out by looking, now and then
                value = _or_end(
                    case,
                    ipcqueue.ReceiverGone if kind is ipcqueue.EndOfStream else kind,
                    lambda other=other, record=record: other.xmit(record(3), timeout=0),
                )
                if value is not FAILED:
                    break
            _or_end(case, kind, lambda other=other: other.recv_ctrl_msg(timeout=PATIENCE))
            end(case, other, one)


def _or_end(case, kind, function):
    def call():
        try:
            return function()
        except kind:
            return kind
        except ipcqueue.PeerDied:
            # By an error of the socket it could not know better; and Closed is this side's own.
            return kind if case.fault.is_one_of(fault_cases.GONE) else FAILED
        except ipcqueue.Closed:
            return kind

    return case.do(call)


def server(case):
    """A listener that something happens to serves the next client all the same."""
    address = str(Path(DIRECTORY) / "server")
    listener = case.do(memenpsf.listen, address, 8)
    if listener is FAILED:
        listener = memenpsf.listen(address, 8)

    def client():
        interface = memenpsf.connect(address, 8, timeout=PATIENCE)
        try:
            interface.xmit(b"the same")
            return interface.recv(PATIENCE)
        finally:
            interface.close()

    def accept():
        try:
            return listener.accept(0.05)
        except ipcqueue.QueueError:
            raise
        except TimeoutError:
            return FAILED

    def serve(client):
        attempts = 0
        while client.is_alive():
            attempts += 1
            try:
                interface = case.do(accept) if attempts <= 5 else accept()
            except (OSError, ipcqueue.QueueError):
                continue  # of what went wrong before
            if interface is FAILED:
                time.sleep(0.002)
            else:
                with interface:
                    try:
                        interface.xmit(interface.recv(PATIENCE))
                    except ipcqueue.QueueError as error:  # see _both_ways
                        case.expect(case.fault.is_one_of(fault_cases.GONE), f"and then {error!r}")
                        continue
                    served = client.result_of()
                case.expect(served == b"the same", f"the client got {served!r}, {client.error}")
        client.join(PATIENCE)

    for _ in range(2):
        serve(case.beside(client))
    last = case.beside(client)  # and with nothing wrong any more
    with listener.accept(PATIENCE) as interface:
        interface.xmit(interface.recv(PATIENCE))
        served = last.result_of()
    case.expect(served == b"the same", f"the last client got {served!r}, {last.error!r}")
    case.do(listener.close)
    if Path(address).exists():  # removing it may have failed; the next server replaces it
        memenpsf.listen(address, 8).close()


def client(case):
    address = str(Path(DIRECTORY) / "client")

    def serve():
        record = b""
        with memenpsf.listen(address, 8) as listener:
            while record != b"the last":
                with contextlib.suppress(ipcqueue.QueueError, OSError):
                    with listener.accept(PATIENCE) as interface:
                        record = interface.recv(PATIENCE)
                        interface.xmit(record)
                        interface.recv(PATIENCE)

    server = case.beside(serve)
    while not Path(address).exists():
        time.sleep(0.001)
    interface = case.do(memenpsf.connect, address, 8, timeout=PATIENCE)
    if interface is not FAILED:
        with interface:
            got = _both_ways(case, interface)
            case.expect(got in (FAILED, b"the same"), f"the server gave back {got!r}")
    with memenpsf.connect(address, 8, timeout=PATIENCE) as interface:
        interface.xmit(b"the last")
        got = interface.recv(PATIENCE)
        case.expect(got == b"the last", f"the server gave back {got!r}")
    server.result_of()
    case.expect(server.error is None, f"the server: {server.error}")


def _both_ways(case, interface):
    try:
        interface.xmit(b"the same")
        return interface.recv(PATIENCE)
    except ipcqueue.QueueError as error:
        # A peer to which nothing can be sent has not heard our HELLO; it may have sent its own.
        case.expect(case.fault.is_one_of(fault_cases.GONE), f"connected, and yet {error!r}")
        return FAILED


def addresses(case):
    """Bare names, paths and abstract ones; and a file that a dead server has left."""
    stale = Path(DIRECTORY) / "memenpsf" / "stale"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    for address in ("stale", f"@memenpsf-{os.getpid()}"):
        listener = case.do(memenpsf.listen, address, 8)
        if listener is FAILED:
            listener = memenpsf.listen(address, 8)
        again = case.do(_refused, address)
        if again == "replaced":  # what could it do
            case.expect(case.fault.is_one_of(fault_cases.ABSENT), "a live server was replaced")
        else:
            case.expect(_refused(address) == "in use", "a live server was replaced")
        case.do(listener.close)
        case.expect(": closed, " in repr(listener), "close() did not close")
    stale.unlink(missing_ok=True)


def _refused(address):
    try:
        memenpsf.listen(address, 8).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return "in use"
        raise
    return "replaced"


def run_loop(case):
    import queue

    ends = socket.socketpair()
    outgoing, incoming = queue.Queue(), queue.Queue()
    for n in range(3):
        outgoing.put(b"%08d" % n)
    outgoing.put(None)
    got = []

    def other():
        with memenpsf.Interface(ends[1], 8) as interface:
            with contextlib.suppress(ipcqueue.ReceiverGone):  # it may have ended already
                interface.xmit(b"backward")
            got.extend(interface)

    thread = Beside(other)
    ended = case.do(memenpsf.run, "run", 8, 0, ends[0], outgoing, incoming, 8)
    if ends[0].fileno() >= 0:
        case.problem("run() has not taken the socket")
    thread.join(PATIENCE)
    if ended is not FAILED:
        sent = [b"%08d" % n for n in range(3)]
        left = list(ended.unsent)
        whole = got + left == sent or case.fault.is_one_of(fault_cases.GONE)
        case.expect(whole, f"came: {got}, unsent: {left}, {ended}")


# -- fdpass alone -----------------------------------------------------------------------------


def descriptors(case):
    with contextlib.ExitStack() as undo:
        one, other = (undo.enter_context(each) for each in socket.socketpair())
        file = undo.enter_context(Path(os.devnull).open())
        for each in (one, other):
            each.settimeout(PATIENCE)
        sent = case.do(fdpass.send_fd, one, file, b"tag")
        if sent is FAILED:
            fdpass.send_fd(one, file, b"tag")
        got = case.do(fdpass.recv_fd, other, b"tag")
        if got is FAILED:  # what came of it is closed; the rest of the tag may still be there
            other.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for fd in fdpass.recv_fds(other)[1]:
                    fd.close()
            other.settimeout(PATIENCE)
        else:
            got.close()
        if case.do(fdpass.send_fds, one, [file, one, other], b"data") is not FAILED:
            received = case.do(fdpass.recv_fds, other)
            if received is not FAILED:
                for fd in received[1]:
                    fd.close()
            fdpass.send_fds(one, [file, one], b"none expected")
            refused = case.do(_refusing, other)
            case.expect(refused in (FAILED, "refused"), f"not refused, but {refused}")
        case.do(fdpass.peer_credentials, one)


def _refusing(sock):
    try:
        fdpass.recv_fds(sock, 1)
    except fdpass.WrongDescriptors:
        return "refused"
    return "taken"


def memory_files(case):
    _memfd._device_of_memfds.cache_clear()
    with contextlib.ExitStack() as undo:
        memfd = case.do(fdpass.Memfd.create, "faults", 5000)
        if memfd is FAILED:
            memfd = fdpass.Memfd.create("faults", 5000)
        undo.callback(memfd.close)
        mapping = case.do(memfd.map, writable=True)
        if mapping is not FAILED:
            mapping.close()
        seals = fdpass.Seal.SHRINK | fdpass.Seal.GROW | fdpass.Seal.SEAL
        if case.do(memfd.seal, seals) is FAILED:
            memfd.seal(seals)
        adopted = case.do(fdpass.Memfd.adopt, os.dup(memfd.fileno()), max_size=1 << 20)
        if adopted is not FAILED:
            case.expect(adopted.size == 5000, "another size")
            case.do(adopted.close)
        case.do(lambda: memfd.seals)
        case.do(memfd.close)
        case.expect(memfd.closed, "close() did not close")


def regions(case):
    with contextlib.ExitStack() as undo:
        for mode in ("frozen", "shared"):
            region = case.do(fdpass.MemoryRegion.create, 5000, mode=mode)
            if region is FAILED:
                region = fdpass.MemoryRegion.create(5000, mode=mode)
            undo.callback(region.close)
            case.do(lambda region=region: region.buffer.__setitem__(0, 1))
            given = case.do(region.descriptors)
            if given is not FAILED:
                copies = [os.dup(fd.fileno()) for fd in given]
                taken = case.do(
                    fdpass.MemoryRegion.adopt, copies, max_size=1 << 20, accept_shared=True
                )
                if taken is not FAILED:
                    case.do(lambda taken=taken: taken.buffer[0])
                    case.do(taken.close)
                    case.expect(taken.closed, "close() did not close")
            case.do(region.close)


def registry(case):
    registry = case.do(fdpass.MemoryRegistry)
    if registry is FAILED:
        return
    mappings = fdpass.lowlevel.Mappings()
    for _ in range(2):
        region = case.do(registry.alloc, 5000, "tag")
        if region is FAILED:
            region = registry.alloc(5000, "tag")
        case.do(lambda region=region: region.buffer.__setitem__(0, 7))
        given = case.do(region.descriptors)
        if given is not FAILED:
            copies = [os.dup(fd.fileno()) for fd in given]
            taken = case.do(fdpass.MemoryRegion.adopt, copies, max_size=1 << 20, mappings=mappings)
            if taken is not FAILED:
                case.do(lambda taken=taken: taken.buffer[0])
                case.do(taken.close)
        case.do(region.close)
        del region, given
        case.do(registry.collect)
    registry.collect()
    numbers = registry.statistics()
    case.expect(numbers.lent == 0, f"not all came home: {numbers}")
    case.expect(numbers.created == numbers.lent + numbers.idle + numbers.freed, f"{numbers}")
    mappings.close()
    case.do(registry.close)
    case.expect(registry.closed, "close() did not close")


# -- Trio -------------------------------------------------------------------------------------


def under_trio(body):
    def scenario(case):
        import trio

        trio.run(body, case)

    return scenario


async def trio_connection(case):
    import trio

    import memenpsf.trio

    address = str(Path(DIRECTORY) / "trio")
    listener = await case.do_async(
        memenpsf.trio.listen, address, bytes, accept=memenpsf.Accept(fds=2)
    )
    if listener is FAILED:
        listener = await memenpsf.trio.listen(address, bytes, accept=memenpsf.Accept(fds=2))
    accepted, wanted = [], []

    async def serve():
        while not accepted:
            interface = await case.do_async(listener.accept)
            if interface is FAILED:
                continue
            if interface.peer_name == wanted[-1]:
                accepted.append(interface)
                served.set()
            else:  # of a client that has given up
                await interface.aclose()

    async def connect(name):
        try:
            return await memenpsf.trio.connect(
                address, bytes, name=name, timeout=PATIENCE, accept=memenpsf.Accept(fds=2)
            )
        except (ipcqueue.PeerDied, ipcqueue.Refused):
            return FAILED  # it was the server that something happened to

    for name, patience in (("first", 0.5), ("second", PATIENCE)):
        wanted.append(name)
        served = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            client = await case.do_async(connect, name)
            with trio.move_on_after(0 if client is FAILED else patience):
                await served.wait()
            nursery.cancel_scope.cancel()
        if accepted and client is not FAILED:
            break
        for interface in (*accepted, client):
            if interface is not FAILED:
                await interface.aclose()
        accepted.clear()
    else:
        case.problem("the second client did not get in")
        await listener.aclose()
        return
    one, other = client, accepted[0]
    await trio_traffic(case, one, other)
    for each in (one, other):
        await case.do_async(each.aclose)
    await case.do_async(listener.aclose)
    if address in map(str, Path(DIRECTORY).iterdir()):  # noqa: ASYNC240 (nobody waits for it)
        await (await memenpsf.trio.listen(address, bytes)).aclose()


async def trio_traffic(case, one, other):
    import trio

    flow = Flow(case, None)

    async def take(function, *arguments, **named):
        value = await case.do_async(function, *arguments, **named)
        if isinstance(value, list):
            flow.got += value
        elif isinstance(value, ipcqueue.Received):
            flow.got.append(closing(value))
        elif value is not FAILED and value is not None:
            flow.got.append(value)

    async def send(data, **more):
        if await case.do_async(one.xmit, data, timeout=0, **more) is not FAILED:
            flow.sent.append(data)

    async def borrow():
        async with other.borrow(timeout=0) as messages:
            taken = [bytes(message.data) for message in messages]
            messages.data = ()
        return taken

    async def sleeper():
        await take(other.recv, PATIENCE)

    with fdpass.Fd(os.dup(0)) as file:
        await send(b"1")
        await send(b"2", fds=[file])
        await send(b"3" * 300_000)
        await take(other.recv, timeout=0)
        await take(other.recv_message, timeout=0)
        await take(other.recv_vectored, timeout=0)
        await send(b"4", fds=[file])
        await take(borrow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleeper)
            await trio.sleep(0.001)
            await send(b"5")
            if flow.sent[-1:] != [b"5"]:
                try:
                    await one.xmit(b"5")
                    flow.sent.append(b"5")
                except ipcqueue.Refused:  # and the sleeper has seen the end, too
                    case.expect(case.fault.distrusts, "the peer was refused")
        sent = await case.do_async(one.send_ctrl_msg, b"\x80\x01") is not FAILED
        message = await case.do_async(other.recv_ctrl_msg, timeout=0)
        if message in (None, FAILED):
            with contextlib.suppress(ipcqueue.QueueError):
                message = await other.recv_ctrl_msg(timeout=0)
        case.expect(
            (message == b"\x80\x01") == sent or case.fault.is_one_of(fault_cases.GONE),
            f"control message {sent}: {message!r}",
        )
    try:
        while (received := await other.recv_message(timeout=0)) is not None:
            flow.got.append(closing(received))
    except (ipcqueue.EndOfStream, ipcqueue.PeerDied, ipcqueue.DescriptorsLost):
        pass
    except ipcqueue.CorruptPeer as error:
        case.expect(case.fault.distrusts, f"cannot be drained: {error!r}")
    ends = ipcqueue.DescriptorsLost, ipcqueue.CorruptPeer
    lost = any(isinstance(error, ends) for error in case.told)
    case.expect(
        flow.got == (flow.sent[: len(flow.got)] if lost else flow.sent),
        f"sent {fault_cases._brief(flow.sent)}, received {fault_cases._brief(flow.got)}",
    )


async def trio_descriptors(case):
    import trio

    import fdpass.trio

    one, other = trio.socket.socketpair()
    with fdpass.Fd(os.dup(0)) as file, one, other:
        if await case.do_async(fdpass.trio.send_fd, one, file, b"tag") is FAILED:
            await fdpass.trio.send_fd(one, file, b"tag")
        got = await case.do_async(fdpass.trio.recv_fd, other, b"tag")
        if got is not FAILED:
            got.close()
            if await case.do_async(fdpass.trio.send_fds, one, [file, one], b"data") is not FAILED:
                received = await case.do_async(fdpass.trio.recv_fds, other)
                if received is not FAILED:
                    for fd in received[1]:
                        fd.close()


# -- asyncio ----------------------------------------------------------------------------------


def under_asyncio(body):
    def scenario(case):
        import asyncio

        import memenpsf.asyncio

        async def main():
            # The peer is of another thread, in which nothing fails.
            here, there = socket.socketpair()
            peer = Beside(lambda: memenpsf.Interface(there, bytes))
            async with memenpsf.asyncio.Interface(here, bytes) as one:
                await one.do_handshake()
                with peer.result_of() as other:
                    await body(case, one, other)

        asyncio.run(main())

    return scenario


async def tasks_that_sleep(case, one, other):
    """A task that waits for records beside one that waits for messages; each is woken."""
    import asyncio

    for n in range(3):
        record, message = b"%d" % n, bytes((128, n))
        reading = asyncio.create_task(case.do_async(one.recv_ctrl_msg, PATIENCE))
        waiting = asyncio.create_task(case.do_async(one.recv, PATIENCE))
        await asyncio.sleep(0.001)
        began = time.monotonic()
        sending = Beside(lambda r=record, m=message: (other.xmit(r), other.send_ctrl_msg(m)))
        got = await waiting
        try:
            if got is FAILED:
                got = await one.recv(PATIENCE)
            case.expect(got == record, f"received {got!r}")
            if (got := await reading) is FAILED:
                got = await one.recv_ctrl_msg(PATIENCE)
            case.expect(got == message, f"received {got!r}")
        except ipcqueue.QueueError as error:
            case.expect(case.fault.is_one_of(fault_cases.GONE), f"and then {error!r}")
            await reading
            break
        sending.result_of()
        case.expect(time.monotonic() < began + PATIENCE / 2, "nobody woke it")


async def set_of_tasks(case, one, other):
    """Two tasks receive from a set, and both are woken."""
    import asyncio

    import memenpsf.asyncio

    _gathering.RESCUE = 3600.0
    gathered, sent = Gathered(case), []
    readers = made(case, memenpsf.asyncio.ReceiverSet, [one])
    for n in range(3):
        receiving = [
            asyncio.create_task(gathered.take_async(readers.recv, PATIENCE)) for _ in range(2)
        ]
        await asyncio.sleep(0.001)
        began = time.monotonic()
        batch = [b"%d" % n, b"%d again" % n]
        sending = Beside(lambda batch=batch: other.xmit_many(batch))
        sent += batch
        while not all(each.done() for each in receiving) and len(gathered.of.get(one, ())) < len(
            sent
        ):
            await asyncio.sleep(0.001)
            if one not in readers or time.monotonic() > began + PATIENCE / 2:
                case.expect(gathered.have_lost(), "nobody woke it")
                break
        for each in receiving:
            each.cancel()
        await asyncio.wait(receiving)
        sending.result_of()
        while one in readers and len(gathered.of.get(one, ())) < len(sent):
            if (got := await readers.recv(timeout=1)) is None:
                break
            gathered.note([got])
    if not gathered.have_lost():
        case.expect(gathered.of == {one: sent}, f"sent {sent}, received {gathered.of}")
    case.do(readers.close)
    case.expect(readers.closed, "close() did not close")


# What is Trio's own, and not to be failed: it ends with its loop.
_OF_TRIO = ("epoll_create1", "epoll_ctl", "epoll_wait", "pthread_create")

# What carries descriptors arrives whole: two bytes that were sent at once.
_WHOLE = (("recvmsg", "SHORT"),)

# name: (scenario, what does not fail in it: functions, or functions with an error)
SCENARIOS = {
    "opening of slots": (opening(8), ()),
    "opening of messages": (opening(bytes, capacity=4096), ()),
    "a server": (server, ()),
    "a client": (client, ()),
    "addresses": (addresses, ()),
    "records of one size": (records("slots"), ()),
    "tuples": (records("tuples"), ()),
    "messages": (records("messages"), ()),
    "an idle sender": (idle_sender, ()),
    "a receiver that sleeps": (sleeping_receiver, ()),
    "a doorbell for records": (doorbell, ()),
    "a sender that sleeps": (sleeping_sender, ()),
    "a doorbell for space": (space_bell, ()),
    "control messages": (control, ()),
    "control messages into a full socket": (control_in_a_full_socket, ()),
    "attachments": (attachments, _WHOLE),
    "messages outside the ring": (outside, _WHOLE),
    "loans of slots": (loans("slots"), ()),
    "loans of messages": (loans("messages"), ()),
    "members of a set": (members, _WHOLE),
    "a set that sleeps": (sleeping_set, ()),
    "clients of a set": (clients_of_a_set, ()),
    "waiting for many": (waiting_for_many, ()),
    "an orderly end": (orderly_end, _WHOLE),
    "finishing": (finishing, (*_WHOLE, "shutdown")),  # it is connected, so that cannot be
    "a sudden end": (sudden_end, _WHOLE),
    "the run loop": (run_loop, ()),
    "descriptors": (descriptors, ()),
    "memory files": (memory_files, ()),
    "regions": (regions, ()),
    "a registry": (registry, ()),
    "Trio": (under_trio(trio_connection), _OF_TRIO + _WHOLE),
    "tasks that sleep": (under_asyncio(tasks_that_sleep), ("pthread_create",)),  # of the scenario
    "a set of tasks": (under_asyncio(set_of_tasks), ("pthread_create",)),
    "descriptors under Trio": (under_trio(trio_descriptors), _OF_TRIO),
}

# Where descriptors are made, or come; and nobody else in the same process may want some.
LIMITED = (
    "opening of slots",
    "opening of messages",
    "a server",
    "a client",
    "addresses",
    "attachments",
    "messages outside the ring",
    "members of a set",
    "clients of a set",
    "waiting for many",
    "descriptors",
    "memory files",
    "regions",
    "a registry",
)

# Where one thread does all of it, so that the n-th allocation is the same each time.
NEEDY = (
    "records of one size",
    "tuples",
    "messages",
    "control messages",
    "attachments",
    "messages outside the ring",
    "loans of slots",
    "loans of messages",
    "members of a set",
)
