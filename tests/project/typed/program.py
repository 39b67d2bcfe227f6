"""A user's program: type checkers must agree with each assert_type, and find nothing else."""

import json
from enum import Enum
from typing import Annotated, Any, NamedTuple, assert_type

import numpy as np

import ipcqueue
import memenpsf
import memenpsf.asyncio
import memenpsf.trio
from memenpsf import Accept, Encoded, Message, Quota, Received, Spin, f64, u16, u64


class Tick(NamedTuple):
    time: u64
    price: f64


class Colour(Enum):
    RED = 1


class Book(NamedTuple):
    number: int
    best: Tick
    name: Annotated[str, "16s"]
    colour: Annotated[Colour, "B"]
    lots: Annotated[list[u16], 3]
    where: tuple[f64, f64]
    limit: Annotated[int | None, "q", {None: -1}] = None


def receive_book(books: memenpsf.Interface[Book]) -> None:
    book = books.recv()
    assert_type(book.best.price, float)
    assert_type(book.name, str)
    assert_type(book.colour, Colour)
    assert_type(book.lots, list[int])
    assert_type(book.where, tuple[float, float])
    assert_type(book.limit, int | None)
    books.xmit(Book(1, Tick(1, 2.5), "name", Colour.RED, [1, 2, 3], (0.5, 1.5)))


def encode(tick: Tick) -> bytes:
    return json.dumps(tick).encode()


def decode(data: bytes) -> Tick:
    return Tick(*json.loads(data))


TICKS = Encoded(encode, decode)


def receive(ticks: memenpsf.Interface[Tick]) -> None:
    assert_type(ticks.recv(), Tick)
    assert_type(ticks.recv(timeout=None), Tick)
    assert_type(ticks.recv(timeout=0.5), Tick | None)
    assert_type(ticks.recv(timeout=0, default="nothing"), Tick | str)
    assert_type(ticks.recv_vectored(), list[Tick])
    assert_type(ticks.recv_message(), Received[Tick])
    assert_type(ticks.recv_message(timeout=1), Received[Tick] | None)
    assert_type(ticks.recv_ctrl_msg(), bytes | None)
    assert_type(ticks.recv_ctrl_msg(timeout=None), bytes)
    for tick in ticks:
        assert_type(tick.price, float)


def send(ticks: memenpsf.Interface[Tick]) -> None:
    ticks.xmit(Tick(1, 2.5), timeout=0.5)
    ticks.xmit_many(Tick(n, 2.5) for n in range(3))


def deal(ticks: memenpsf.Interface[Tick]) -> None:
    assert_type(list(memenpsf.deal([Tick(1, 2.5)], [ticks], most=9)), list[Tick])


def connect() -> None:
    options = Accept(fds=1)
    assert_type(memenpsf.connect("ticks", Tick, wait=Spin(1e-4)), memenpsf.Interface[Tick])
    assert_type(memenpsf.connect("ticks", TICKS, accept=options), memenpsf.Interface[Tick])
    assert_type(memenpsf.connect("ticks", Message, timeout=1), memenpsf.Interface[Message])
    assert_type(memenpsf.connect("ticks", "<Qd", name="me"), memenpsf.Interface[tuple[Any, ...]])
    assert_type(memenpsf.connect("ticks", 64, capacity=None), memenpsf.Interface[bytes])
    messages = memenpsf.connect("ticks", bytes)
    assert_type(messages, memenpsf.Interface[bytes])
    messages.xmit(memoryview(bytearray(3)))
    messages.xmit_many([np.zeros(3), b"abc"])


def arrays() -> None:
    one, other = memenpsf.pair(np.dtype("u8"))
    one.xmit_many(np.zeros(3))
    assert_type(other, memenpsf.Interface[Any])
    assert_type(other.recv_vectored(), Any)
    assert_type(memenpsf.pair(np.uint8)[0].recv_vectored(), Any)


def queue() -> None:
    sender, receiver = ipcqueue.pair(Tick, wait="sleep")
    assert_type(sender, ipcqueue.Sender[Tick])
    assert_type(receiver.pop(), Tick)
    assert_type(receiver.pop(timeout=0), Tick | None)
    assert_type(receiver.pop(timeout=0, default=0), Tick | int)
    assert_type(receiver.pop_many(8), list[Tick])
    sender.push(Tick(1, 2.5))


def untyped(interface: memenpsf.Interface) -> None:
    assert_type(interface.recv(), Any)


def serve() -> None:
    with memenpsf.listen("ticks", TICKS, quota=Quota(connections=2)) as listener:
        assert_type(listener.accept(), memenpsf.Interface[Tick])
    memenpsf.serve(receive, "ticks", Tick, on_error="raise")
    memenpsf.serve(untyped, "ticks", 64)


async def handle(interface: memenpsf.trio.Interface[Tick]) -> None:
    async for tick in interface:
        assert_type(tick, Tick)
        await interface.send(tick)
    assert_type(await interface.receive(), Tick)
    assert_type(await interface.recv(timeout=1), Tick | None)
    assert_type(await interface.recv(timeout=1, default=0), Tick | int)
    assert_type(await interface.recv_vectored(), list[Tick])


async def handle_in_asyncio(interface: memenpsf.asyncio.Interface[Tick]) -> None:
    async for tick in interface:
        assert_type(tick, Tick)
    assert_type(await interface.recv(timeout=1), Tick | None)
    assert_type(await interface.recv_vectored(), list[Tick])
    async with await memenpsf.asyncio.listen("ticks", TICKS) as listener:
        assert_type(await listener.accept(), memenpsf.asyncio.Interface[Tick])
    await memenpsf.asyncio.serve(handle_in_asyncio, "ticks", Tick)


async def trios() -> None:
    assert_type(await memenpsf.trio.connect("ticks", Tick), memenpsf.trio.Interface[Tick])
    async with await memenpsf.trio.listen("ticks", TICKS) as listener:
        assert_type(await listener.accept(), memenpsf.trio.Interface[Tick])
    await memenpsf.trio.serve(handle, "ticks", Tick, quota=Quota(connections=2))


if __name__ == "__main__":  # what is written above must hold at run time, too
    one, other = memenpsf.pair(Tick)
    assert one.recv(timeout=0, default="nothing") == "nothing"
    send(one)
    assert isinstance(assert_type(other.recv(), Tick), Tick)
    assert isinstance(assert_type(other.recv_vectored(), list[Tick])[0], Tick)
    queue_of_ticks: type[ipcqueue.Sender[Tick]] = ipcqueue.Sender[Tick]
