"""A user's mistakes: a type checker must find each line that ends with what it must say there."""

from typing import NamedTuple

import memenpsf
import memenpsf.trio


class Tick(NamedTuple):
    time: memenpsf.u64


class Order(NamedTuple):
    time: memenpsf.u64


def handle(interface: memenpsf.Interface[Tick]) -> None: ...


async def handle_async(interface: memenpsf.trio.Interface[Tick]) -> None: ...


async def mistakes() -> None:
    one, other = memenpsf.pair(Tick)
    memenpsf.connect("ticks", Tick, wiat="spin")  # wiat
    memenpsf.connect("ticks", Tick, wait="spni")  # connect
    memenpsf.connect("ticks", Tick, max_message=1)  # max_message
    memenpsf.connect("ticks", 2.5)  # connect
    memenpsf.listen("ticks", Tick, quotas=None)  # quotas
    memenpsf.pair(Tick, quota=memenpsf.Quota())  # quota
    memenpsf.serve(handle, "ticks", Tick, onerror="log")  # onerror
    memenpsf.serve(handle, "ticks", Order)  # serve
    await memenpsf.trio.connect("ticks", Tick, wiat="spin")  # wiat
    await memenpsf.trio.serve(handle_async, "ticks", Order)  # serve
    await (await memenpsf.trio.connect("ticks", Tick)).send(Order(1))  # Order
    one.xmit(Order(1))  # Order
    one.xmit_many([Order(1)])  # Order
    one.xmit((1,))  # xmit
    print(other.recv().price)  # price
    print(other.recv(timeout=1).time)  # None
    memenpsf.pair(bytes)[0].xmit("text")  # xmit
