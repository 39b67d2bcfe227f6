"""How tasks look for a record between the turns of their event loop, before they sleep."""

from __future__ import annotations

import pytest

from tests.kit.doors import task_scenario

LONG = 5 * 10**9  # nanoseconds


def patient(interface, monkeypatch, nanoseconds):
    """Have it look for so long; return what it learns."""
    learned = []
    receiver = interface._endpoint.receiver
    monkeypatch.setattr(receiver, "patience", lambda: nanoseconds)
    monkeypatch.setattr(receiver, "learn", learned.append)
    return learned


@task_scenario
async def test_what_comes_while_a_task_looks_rings_no_bell(door, monkeypatch):
    async with door.pair() as (one, other):
        learned = patient(other, monkeypatch, LONG)
        for n in range(5):
            async with door.tasks() as group:
                receiving = group.start(other.recv)
                for _ in range(5):  # which others have meanwhile
                    await door.others()
                one.xmit_nowait((n,))
            assert receiving.result == (n,)
        assert learned == [True] * 5
        assert one.statistics().doorbells == 0


@task_scenario
async def test_who_has_looked_long_enough_sleeps(door, monkeypatch):
    async with door.pair() as (one, other):
        learned = patient(other, monkeypatch, 1)
        async with door.tasks() as group:
            receiving = group.start(other.recv)
            await group.blocked()
            await one.xmit((1,))
        assert receiving.result == (1,)
        assert learned == [False]
        assert one.statistics().doorbells == 1


@task_scenario
async def test_the_end_ends_a_look(door, monkeypatch):
    async with door.pair() as (one, other):
        patient(other, monkeypatch, LONG)
        async with door.tasks() as group:
            receiving = group.start(other.recv)
            for _ in range(5):
                await door.others()
            await one.aclose()
        with door.raises("EndOfStream"):
            assert receiving.result


@task_scenario
async def test_cancelling_who_looks_loses_nothing(door, monkeypatch):
    async with door.pair() as (one, other):
        patient(other, monkeypatch, LONG)
        async with door.tasks() as group:
            receiving = group.start(other.recv)
            for _ in range(5):
                await door.others()
            one.xmit_nowait((1,))
            receiving.cancel()
        assert receiving.result == (1,) if receiving.done else await other.recv() == (1,)


@pytest.mark.parametrize("wait", ["sleep", "spin"])
@task_scenario
async def test_two_sides_of_one_process_do_not_look(door, wait):
    async with door.pair(wait=wait) as (_, other):
        assert other._endpoint.receiver.patience() == 0
