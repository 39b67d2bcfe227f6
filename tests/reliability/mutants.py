"""Takes one rule after another out of the source, and asks the test that is for it: `make mutants`.

A mutant that its test lets through means that nothing guards the rule.  Each is made in a copy of
the tree, built if it is in C, and given to one named test, which passes on the unchanged copy (tried
first).  Arguments are names of mutants; none means all.  MEMENPSF_MUTANTS="3/2" means every second
one, beginning with the one whose number is odd as 3 is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parent.parent.parent
COPIED = ["fdpass", "ipcqueue", "memenpsf", "tests", "examples", "docs"]
COPIED_FILES = ["setup.py", "pyproject.toml", "README.md", "LICENSE", "Makefile"]
PASSED, FAILED = 0, 1  # of pytest; all else is no verdict
DEADLINE = 600
HANGS = "20"
"""Seconds after which a test that states no deadline of its own fails where a rule is left out."""


class Mutant(NamedTuple):
    """One rule left out: `old` stands once in the file, and becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    test: str  # below tests/, as pytest names it


MUTANTS = [
    Mutant(
        "a set sleeps though a record came while it was armed",
        "memenpsf/_gathering.py",
        "        if self._line:  # something has come since",
        "        if False:  # something has come since",
        "memenpsf/test_receiver_set.py::test_what_comes_between_the_look_and_the_sleep_is_found",
    ),
    Mutant(
        "a turn is queued again before those who were woken",
        "memenpsf/_gathering.py",
        "                self._collect()  # first",
        "                pass  # first",
        "conformance/test_receiver_sets.py::test_a_flood_does_not_starve_a_trickle",
    ),
    Mutant(
        "a turn has no end",
        "memenpsf/_gathering.py",
        "        self.quantum: Iterator[Any] = repeat(None if member is None else member.given, QUANTUM)",
        "        self.quantum: Iterator[Any] = repeat(None if member is None else member.given)",
        "conformance/test_receiver_sets.py::test_a_flood_does_not_starve_a_trickle",
    ),
    Mutant(
        "a set is not woken by who reads for it",
        "memenpsf/_gathering.py",
        "        self.gathering.woken.append(self)\n",
        "        return\n",
        "conformance/test_receiver_sets.py::test_what_somebody_else_reads_wakes_it_as_well",
    ),
    Mutant(
        "an end stays in the set",
        "memenpsf/_gathering.py",
        "        if ended:\n            with self._mutex:\n                self._drop(member)\n",
        "        if ended:\n",
        "conformance/test_receiver_sets.py::test_an_end_is_returned_behind_what_came_before_and_ends_nobody_else",
    ),
    Mutant(
        "a batch is lost where a signal handler raises",
        "memenpsf/_gathering.py",
        "            persist(self._give_back, batches)\n",
        "",
        "memenpsf/test_receiver_set.py::test_an_exception_at_any_place_neither_loses_nor_doubles",
    ),
    Mutant(
        "a member that is closed by its owner sleeps on",
        "ipcqueue/_link/endpoint.py",
        "        self.waiters.alert()  # a closed socket wakes nobody who polls it\n",
        "",
        "memenpsf/test_receiver_set.py::test_closing_an_end_wakes_those_who_watch_it",
    ),
    Mutant(
        "a removed member gives what is left of its turn",
        "memenpsf/_gathering.py",
        "        if self.turn.member is member:\n            self.turn.end()\n        self.members",
        "        self.members",
        "conformance/test_receiver_sets.py::test_a_member_that_is_removed_in_its_turn_gives_no_more",
    ),
    Mutant(
        "a member that is armed twice keeps its registration",
        "memenpsf/_gathering.py",
        "                self._epoll.modify(fd, events | select.EPOLLONESHOT)",
        "                self._epoll.modify(fd, 0)",
        "conformance/test_receiver_sets.py::test_a_record_wakes_it_again_and_again",
    ),
    Mutant(
        "closing a set wakes nobody",
        "memenpsf/_gathering.py",
        "            else:\n                self.waking.ring()\n",
        "",
        "conformance/test_receiver_sets.py::test_closing_wakes_those_who_wait",
    ),
    Mutant(
        "a member that somebody borrows from is tried all the time",
        "memenpsf/_gathering.py",
        "        if member.left or member in self._due:",
        "        if member.left:",
        "memenpsf/test_receiver_set.py::test_a_member_that_somebody_borrows_from_rests",
    ),
    Mutant(
        "a set never looks for lost doorbells",
        "memenpsf/_gathering.py",
        "                if not member.queued and member.source.look_aside():",
        "                if False:",
        "memenpsf/test_receiver_set.py::test_a_record_without_a_doorbell_is_found_all_the_same",
    ),
    Mutant(
        "clients that joined are left open",
        "memenpsf/_gathering.py",
        "            if member.own:\n                member.given.close()\n",
        "",
        "conformance/test_receiver_sets.py::test_clients_join_by_themselves_and_are_closed_at_their_end",
    ),
    Mutant(
        "a set copies a large message in one go",
        "memenpsf/_gathering.py",
        "            if not self._advance(turn) or halfway:\n",
        "            if not self._advance(turn):\n",
        "memenpsf/test_task_receiver_sets.py::test_others_run_while_a_large_message_is_copied",
    ),
    Mutant(
        "two tasks wait for one descriptor",
        "memenpsf/_gathering.py",
        "(self._epoll, self.waking) if self._waiting else (self._epoll,)",
        "(self._epoll,)",
        "conformance/test_receiver_sets.py::test_any_number_may_receive_and_nothing_is_lost",
    ),
    Mutant(
        "who was told alone leaves the others asleep",
        "memenpsf/_gathering.py",
        "                    self.waking.ring()\n            return self.turn",
        "                    pass\n            return self.turn",
        "memenpsf/test_receiver_set.py::test_who_takes_one_of_many_wakes_another",
    ),
    Mutant(
        "a set takes the clients that a task accepts",
        "memenpsf/_tasks/listener.py",
        "            return None  # that task is the one that works\n",
        "            pass\n",
        "memenpsf/test_task_receiver_sets.py::test_a_listener_is_left_to_the_task_that_accepts",
    ),
    Mutant(
        "a set of tasks never lets others run",
        "memenpsf/asyncio/_waiting.py",
        "        if self._calls >= self.turn:\n",
        "        if False:\n",
        "memenpsf/test_task_receiver_sets.py::test_others_run_while_a_set_need_not_wait",
    ),
    Mutant(
        "a forked child takes the hub out of its parent's loop",
        "memenpsf/asyncio/_hub.py",
        "os.getpid() == self._pid and not self._loop.is_closed()",
        "not self._loop.is_closed()",
        "memenpsf/test_asyncio.py::test_a_forked_child_that_closes_leaves_the_sleepers_of_its_parent_alone",
    ),
    Mutant(
        "a hub stays in its loop for good",
        "memenpsf/asyncio/_waiting.py",
        "        if hub is not None:\n            hub.leave()\n\n    def _forget",
        "\n    def _forget",
        "memenpsf/test_asyncio.py::test_the_loop_polls_nothing_once_the_last_connection_is_closed",
    ),
    Mutant(
        "a batch counts as one call",
        "memenpsf/asyncio/_waiting.py",
        "        self._calls += max(0, records - 1)\n",
        "",
        "memenpsf/test_asyncio.py::test_others_run_after_so_many_records_in_batches",
    ),
    Mutant(
        "a task that looks keeps others from running",
        "ipcqueue/_link/plans.py",
        "            yield NOW\n            came = ",
        "            came = ",
        "memenpsf/test_task_looks.py::test_what_comes_while_a_task_looks_rings_no_bell",
    ),
    Mutant(
        "a task never learns whether looking pays",
        "ipcqueue/_link/plans.py",
        "        endpoint.receiving().learn(came)\n",
        "",
        "memenpsf/test_task_looks.py::test_who_has_looked_long_enough_sleeps",
    ),
    Mutant(
        "wait() leaves what it has armed",
        "memenpsf/_wait.py",
        "    leave_all(sources)\n",
        "",
        "memenpsf/test_wait.py::test_a_record_wakes_it",
    ),
    Mutant(
        "wait() is not woken by who reads for it",
        "memenpsf/_sources.py",
        "        self._watch = Watch(wake)",
        "        self._watch = Watch(lambda: None)",
        "memenpsf/test_wait.py::test_what_is_read_between_the_look_and_the_sleep_wakes_it",
    ),
    Mutant(
        "wait() does not back off",
        "memenpsf/_sources.py",
        "        if endpoint.should_back_off():",
        "        if False and endpoint.should_back_off():",
        "memenpsf/test_wait.py::test_a_peer_that_rings_for_nothing_is_left_alone",
    ),
    Mutant(
        "a doorbell for nothing is not counted by wait()",
        "ipcqueue/_link/side.py",
        "            self.alarms.wake_ups += bool(size)",
        "            pass",
        "memenpsf/test_wait.py::test_a_peer_that_rings_for_nothing_is_left_alone",
    ),
    Mutant(
        "a listener that rests is looked at",
        "memenpsf/_sources.py",
        "        if now < pending.rests_until:",
        "        if False:",
        "memenpsf/test_wait.py::test_a_listener_leaves_clients_alone_for_a_while_after_turning_one_away",
    ),
    Mutant(
        "the end of a listener wakes nobody",
        "memenpsf/_pending.py",
        "                wake()\n",
        "                pass\n",
        "memenpsf/test_wait.py::test_closing_a_listener_tells_who_watches_it",
    ),
    Mutant(
        "wait() never looks again",
        "memenpsf/_wait.py",
        "min(until, now + slice_, ",
        "min(until, ",
        "memenpsf/test_wait.py::test_a_record_without_a_doorbell_is_found_after_a_second_at_most",
    ),
    Mutant(
        "those who watch are told after the read",
        "ipcqueue/_link/wire.py",
        "            self.alert()\n        unread",
        "        unread",
        "memenpsf/test_foreign_loops.py::test_no_call_takes_the_doorbell_of_a_record_away",
    ),
    Mutant(
        "those who watch are told though nothing comes",
        "ipcqueue/_link/wire.py",
        "if not self.is_behind() and not self._poll.poll(0):",
        "if not self.is_behind() and not self._poll:",
        "memenpsf/test_foreign_loops.py::test_a_loop_is_not_woken_for_nothing",
    ),
    Mutant(
        "a bell is silenced for a task whose event has come",
        "ipcqueue/_link/watches.py",
        "if told and self._ignored < MAX_TASKS:",
        "if told and self._ignored < 1:",
        "ipcqueue/test_watches.py::test_tasks_that_arm_before_the_loop_polls_do_not_silence_it_for_another",
    ),
    Mutant(
        "a bell rings for ever for a task that has gone",
        "ipcqueue/_link/watches.py",
        "        self.events -= told  # a task",
        "        pass  # a task",
        "ipcqueue/test_watches.py::test_a_task_that_does_not_wait_any_more_keeps_the_loop_awake_a_few_times_only",
    ),
    Mutant(
        "a task that goes on takes the news from the others",
        "ipcqueue/_link/watches.py",
        "            if told:  # to others",
        "            if False:  # to others",
        "ipcqueue/test_watches.py::test_a_task_that_goes_on_has_the_bell_rung_for_the_others",
    ),
    Mutant(
        "a watch that begins while another reads is forgotten",
        "ipcqueue/_link/waiters.py",
        "            self.followers.add(watch)",
        "            pass",
        "ipcqueue/test_watches.py::test_a_watch_that_begins_while_another_reads_is_woken_afterwards",
    ),
    Mutant(
        "who leaves withdraws what a watch waits for",
        "ipcqueue/_link/waiters.py",
        "        return any(event in watch.events for watch in tuple(self.watches))",
        "        return False",
        "ipcqueue/test_watches.py::test_what_a_watch_waits_for_is_not_withdrawn_by_a_waiter_that_leaves",
    ),
    Mutant(
        "a bell that an exception has broken off stays silent",
        "ipcqueue/_link/side.py",
        "            persist(bell.release)",
        "            pass",
        "memenpsf/test_foreign_loops.py::test_an_exception_at_any_place_of_arm_loses_no_wake_up",
    ),
    Mutant(
        "the bell is not among the events",
        "ipcqueue/_link/wire.py",
        "                    self._events.register(self._bell.eventfd, select.EPOLLIN)",
        "                    pass",
        "memenpsf/test_foreign_loops.py::test_no_call_takes_the_doorbell_of_a_record_away",
    ),
    Mutant(
        "what is lent is copied first",
        "ipcqueue/_ring/frame_lending.py",
        "self._look(ring, lending.to, copy=False)",
        "self._look(ring, lending.to, copy=True)",
        "ipcqueue/test_loan.py::test_what_is_borrowed_is_not_copied",
    ),
    Mutant(
        "a lock needs memory to be released",
        "ipcqueue/core/python/lock.c",
        """static PyObject *leave(PyObject *release, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(n))
{
    return PyObject_CallNoArgs(release);
}

static PyMethodDef leaving = {
    "__exit__", (PyCFunction)(void (*)(void))leave, METH_FASTCALL, "Release the lock."};
""",
        """static PyObject *leave(PyObject *release, PyObject *Py_UNUSED(args))
{
    return PyObject_CallNoArgs(release);
}

static PyMethodDef leaving = {"__exit__", leave, METH_VARARGS, "Release the lock."};
""",
        "ipcqueue/test_shortage.py::test_a_lock_is_taken_and_released_without_memory",
    ),
    Mutant(
        "an end has a lock that needs memory to be taken",
        "ipcqueue/_ring/end.py",
        "from ipcqueue._direct import RLock\n",
        "from threading import RLock\n",
        "ipcqueue/test_shortage.py::test_a_loan_is_published_or_the_block_says_that_it_is_not",
    ),
    Mutant(
        "a region goes into an empty list by +=",
        "ipcqueue/_ring/frame_builder.py",
        "regions.append(region)",
        "regions += [region]",
        "ipcqueue/test_shortage.py::test_a_region_for_which_there_is_no_memory_stays_open_for_nobody",
    ),
    Mutant(
        "what a handler raises while a batch is built is forgotten",
        "ipcqueue/_ring/frame_builder.py",
        "(done and not built) or leads_outside(failure.__traceback__)",
        "done and not built",
        "signals/test_messages.py::test_what_a_handler_raises_is_raised_and_no_message_is_lost",
    ),
    Mutant(
        "what a handler raises while a message is wrapped is forgotten",
        "ipcqueue/core/python/taking.c",
        "    if (record == NULL && PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_MemoryError))\n",
        "    if (record == NULL && PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_Exception))\n",
        "signals/test_messages.py::test_what_a_handler_raises_is_raised_and_no_message_is_lost",
    ),
    Mutant(
        "what a handler raises while a batch is decoded is forgotten",
        "ipcqueue/_ring/frame_receiver.py",
        "if not isinstance(error, MemoryError) and _succeeds(again):",
        "if False:",
        "signals/test_messages.py::test_what_a_handler_raises_is_raised_and_no_message_is_lost",
    ),
    Mutant(
        "a plan of a thread ends by an exception, which needs memory",
        "ipcqueue/_threads.py",
        "            awaited = resume(plan, wait(awaited), result)\n",
        "            awaited = plan.send(wait(awaited))\n    except StopIteration as end:\n"
        "        result = [end.value]\n",
        "ipcqueue/test_plans.py::test_what_is_published_is_said_to_be_also_without_memory",
    ),
    Mutant(
        "a plan of a task ends by an exception, which needs memory",
        "memenpsf/_tasks/waiting.py",
        "                awaited = resume(plan, await self.wait_for(awaited), result)\n",
        "                awaited = plan.send(await self.wait_for(awaited))\n"
        "        except StopIteration as end:\n            result = [end.value]\n",
        "ipcqueue/test_plans.py::test_what_is_published_is_said_to_be_also_without_memory",
    ),
    Mutant(
        "a block ends by a method of Python",
        "ipcqueue/_link/loans.py",
        "        __exit__ = persistent(_leave)\n",
        "        __exit__ = _leave\n",
        "signals/test_blocks.py::test_an_exception_anywhere_leaves_nothing_lent",
    ),
    Mutant(
        "flags of an enum are computed with in each call",
        "fdpass/_rights.py",
        "        if flags & _TRUNC:\n",
        "        if flags & socket.MSG_TRUNC:\n",
        "project/test_layers.py::test_no_function_computes_with_flags_of_an_enum",
    ),
    Mutant(
        "a connection that only sent counts as one that came for nothing",
        "ipcqueue/_link/endpoint.py",
        "bool(last.received or last.sent)",
        "bool(last.received or last.taken)",
        "conformance/test_listeners.py::test_all_who_accept_at_once_get_different_clients[asyncio]",
    ),
    Mutant(
        "a task of asyncio that receives without waiting never lets others run",
        "memenpsf/asyncio/_interface.py",
        "                    self._takes = repeat(endpoint.ready, TURN)\n",
        "                    self._takes = repeat(endpoint.ready)\n",
        "memenpsf/test_asyncio.py::test_others_run_after_so_many_calls_that_need_not_wait",
    ),
    Mutant(
        "a task of asyncio that is cancelled stays with the loop",
        "memenpsf/asyncio/_waiting.py",
        "            undo.callback(self._forget, woken)\n",
        "",
        "memenpsf/test_asyncio.py::test_cancelling_at_every_place_loses_nothing_and_doubles_nothing",
    ),
    Mutant(
        "a task of asyncio that was woken by close() forgets a descriptor of another",
        "memenpsf/asyncio/_waiting.py",
        "        forget = self._sleepers.pop(woken, None)\n",
        "        forget = self._sleepers.get(woken)\n",
        "memenpsf/test_asyncio.py::test_who_was_woken_by_close_leaves_the_next_user_of_a_number_alone",
    ),
    Mutant(
        "closing wakes no task of asyncio",
        "memenpsf/asyncio/_waiting.py",
        "            _wake(woken, False)\n",
        "",
        "memenpsf/test_asyncio.py::test_closing_wakes_all_who_wait",
    ),
    Mutant(
        "close() needs memory before it closes",
        "ipcqueue/_link/endpoint.py",
        "        persist(Endpoint._close, self, ends)  # as in finish()\n",
        "        persist(self._close, ends)\n",
        "ipcqueue/test_shortage.py::test_what_ends_a_connection_does_so_without_memory",
    ),
    Mutant(
        "a verb without arguments needs memory to be called",
        "ipcqueue/_origin.py",
        "    if code.co_argcount + code.co_kwonlyargcount == 1:\n",
        "    if code.co_argcount + code.co_kwonlyargcount == 0:\n",
        "ipcqueue/test_shortage.py::test_what_ends_a_connection_does_so_without_memory",
    ),
    Mutant(
        "what an interrupted entry has opened stays open",
        "ipcqueue/_link/loans.py",
        "                persist(Block.undo, self)  # a bound method would need memory\n",
        "                pass\n",
        "signals/test_blocks.py::test_an_exception_anywhere_leaves_nothing_lent",
    ),
    Mutant(
        "views that a traceback keeps count as handed out",
        "ipcqueue/_ring/end.py",
        "                self._views.forget()\n",
        "",
        "signals/test_blocks.py::test_an_exception_anywhere_leaves_nothing_lent",
    ),
    Mutant(
        "what is published is still on loan",
        "ipcqueue/core/python/lending.c",
        "    PyObject *borrower = self->borrower;\n    self->borrower = NULL;\n",
        "    PyObject *borrower = NULL;\n",
        "signals/test_blocks.py::test_an_exception_anywhere_leaves_nothing_lent",
    ),
    Mutant(
        "what is taken is still lent",
        "ipcqueue/core/python/shelf.c",
        "    if (values[LENT] != NULL) {\n",
        "    if (0) {\n",
        "signals/test_blocks.py::test_what_is_published_or_taken_is_so_once_wherever_its_end_is_struck",
    ),
    Mutant(
        "a Ctrl-C gives way to an error",
        "ipcqueue/core/python/module.c",
        "} else if (PyErr_GivenExceptionMatches(type, PyExc_Exception) &&",
        "} else if (0 && PyErr_GivenExceptionMatches(type, PyExc_Exception) &&",
        "signals/test_strikes.py::test_a_ctrl_c_is_raised_rather_than_an_error_that_came_first",
    ),
    Mutant(
        "Trio may raise Ctrl-C where a block ends",
        "memenpsf/trio/_interface.py",
        "protect(Interface, AsyncLoan, AsyncBorrowing)",
        "protect(Interface)",
        "signals/test_blocks_trio.py",
    ),
    Mutant(
        "a change of the shelf is made of an older one",
        "ipcqueue/core/python/shelf.c",
        "if (turn != self->turn || (",
        "if ((",
        "signals/test_slots.py::TestSignals::test_a_handler_that_pops_anywhere_in_a_pop_takes_other_records",
    ),
    Mutant(
        "what a call hands over stays on the shelf",
        "ipcqueue/core/python/shelf.c",
        "        *found += own;\n        each = own ? entry : each;\n",
        "        *found += own;\n",
        "ipcqueue/test_direct.py",
    ),
    Mutant(
        "what is taken ahead replaces what the collector has taken ahead",
        "ipcqueue/core/python/prefetch.c",
        "    if (has_prefetched(self) || !in_order(self)) {\n        Py_DECREF(list);",
        "    if (0) {\n        Py_DECREF(list);",
        "ipcqueue/test_shelf.py::test_a_short_way_looks_again_when_the_collector_was_there[8-ahead-all]",
    ),
    Mutant(
        "a call overtakes what the collector has left",
        "ipcqueue/core/python/prefetch.c",
        "    if (has_prefetched(self) || !in_order(self) ||\n        ipcq_seen(",
        "    if (ipcq_seen(",
        "ipcqueue/test_shelf.py::test_a_short_way_looks_again_when_the_collector_was_there[8-leave-fetch]",
    ),
    Mutant(
        "a message that the collector has taken is taken once more",
        "ipcqueue/core/python/taking.c",
        "if (record != NULL && (self->turn != turn || !in_order(self)))",
        "if (turn == 0)",
        "ipcqueue/test_shelf.py::test_a_short_way_looks_again_when_the_collector_was_there"
        "[bytes-take one-ready, of those ahead]",
    ),
    Mutant(
        "a change of the shelf is made in part",
        "ipcqueue/core/python/shelf.c",
        "        } else if (!is_right(self, field, value)) {",
        "        } else if (0 && !is_right(self, field, value)) {",
        "ipcqueue/test_shelf.py::test_a_change_that_is_wrong_in_one_place_is_made_in_none",
    ),
    Mutant(
        "Trio hears no cause",
        "memenpsf/_tasks/interface.py",
        "            return default if record is None else record\n        except Exception as error:\n"
        "            raise self._waiting.ours(error, self) from error.__cause__\n",
        "            return default if record is None else record\n        except Exception as error:\n"
        "            raise self._waiting.ours(error, self) from None\n",
        "memenpsf/test_trio_payloads.py::test_a_record_that_its_class_refuses_is_taken_and_the_next_one_comes",
    ),
    Mutant(
        "a batch in the hands of nobody",
        "ipcqueue/core/python/prefetch.c",
        "    Py_XSETREF(self->decoding, decoding); /* instead",
        "    (void)0; /* instead",
        "signals/test_strikes.py::test_two_exceptions_anywhere_in_receiving_neither_lose_nor_double[None-recv_vectored-dataclass]",
    ),
    Mutant(
        "messages in the hands of nobody",
        "ipcqueue/_ring/frame_receiver.py",
        "decoding=[*self._decoding, (call, now)],",
        "decoding=self._decoding,",
        "signals/test_strikes.py::test_two_exceptions_anywhere_in_receiving_neither_lose_nor_double[None-recv-Encoded]",
    ),
    Mutant(
        "a call takes a record that is lent",
        "ipcqueue/_ring/slot_receiver.py",
        "if data and self.commit(turn, ring=ring, raw=raw[size:], decoding=decoding):",
        "if data and self.commit(turn, raw=raw[size:], decoding=decoding):",
        "ipcqueue/test_direct.py::test_what_is_lent_before_a_call_has_it_is_not_taken",
    ),
    Mutant(
        "a loop takes records that are lent",
        "ipcqueue/core/python/prefetch.c",
        "usable(self->ring, self->known) && /* else `raw` may be lent */",
        "",
        "signals/test_strikes.py::test_what_is_borrowed_in_the_middle_of_a_call_is_taken_once[all_in_the_ring-dataclass-loop]",
    ),
    Mutant(
        "a borrowing takes as many as it lent, whichever they are",
        "ipcqueue/_ring/frame_lending.py",
        "[each for each in self._raw if id(each) not in lent]",
        "self._raw[len(lent) :]",
        "signals/test_strikes.py::test_what_is_put_back_beside_a_borrowing_is_not_taken_with_it",
    ),
    Mutant(
        "a call that was interrupted keeps what it had",
        "ipcqueue/_ring/frame_receiver.py",
        "            call.over = True  # one step, see end.py",
        "            pass",
        "signals/test_strikes.py::test_two_exceptions_anywhere_in_receiving_neither_lose_nor_double[None-recv-Encoded]",
    ),
    Mutant(
        "what must be done is tried once",
        "ipcqueue/core/python/module.c",
        "enum { MAX_STRIKES = 100 };",
        "enum { MAX_STRIKES = 1 };",
        "signals/test_strikes.py::test_what_must_be_done_is_done_whatever_strikes",
    ),
    Mutant(
        "a follower is woken while a handler wakes it",
        "ipcqueue/_link/waiters.py",
        "for follower in tuple(self.followers):",
        "for follower in self.followers:",
        "project/test_layers.py::test_no_loop_is_over_what_a_signal_handler_may_change[ipcqueue/_link/waiters.py]",
    ),
    Mutant(
        "a decoder that panics again is believed to be interrupted",
        "ipcqueue/_ring/receiver.py",
        "            if type(second) is type(error):\n                return True\n",
        "",
        "signals/test_strikes.py::test_a_record_that_cannot_be_decoded_blocks_nobody[recv-panic-Encoded]",
    ),
    Mutant(
        "a handler's exception is a record's fault",
        "ipcqueue/_ring/receiver.py",
        "            raise\n        return False\n\n    def _is_suspect",
        "            raise\n        return True\n\n    def _is_suspect",
        "signals/test_strikes.py::test_a_handlers_exception_in_a_decoder_is_not_the_records_fault[recv-Encoded]",
    ),
    Mutant(
        "a foreign exception can always be printed",
        "ipcqueue/_records/decoding.py",
        "    except BaseException:  # noqa",
        "    except KeyError:  # noqa",
        "signals/test_strikes.py::test_a_record_that_cannot_be_decoded_blocks_nobody[recv-no text-Encoded]",
    ),
    Mutant(
        "a StopIteration of a record's class ends a batch",
        "ipcqueue/_records/classes.py",
        "if len(records) != count:",
        "if False:",
        "signals/test_strikes.py::test_a_record_that_cannot_be_decoded_blocks_nobody[recv_vectored-StopIteration-dataclass]",
    ),
    Mutant(
        "a StopIteration of a handler ends a loop",
        "ipcqueue/core/python/iteration.c",
        "        PyErr_Clear();\n    return not_stopped(record);",
        "        PyErr_Clear();\n    return record;",
        "signals/test_strikes.py::test_a_stop_iteration_of_a_handler_ends_no_loop_in_silence[Encoded]",
    ),
    Mutant(
        "what a class has refused in C is not looked at again",
        "ipcqueue/core/python/taking.c",
        "            result = PyObject_Vectorcall(function, args, n, NULL);",
        "            (void)function, (void)args, (void)n, short_of_memory = 1;",
        "signals/test_strikes.py::test_a_handlers_exception_in_a_decoder_is_not_the_records_fault[recv-dataclass]",
    ),
    Mutant(
        "no look again after announcing a wait for records",
        "ipcqueue/core/ring.c",
        "return has_records(r) ? IPCQ_DONE : IPCQ_EMPTY;\n}\n\nvoid ipcq_disarm_records",
        "return IPCQ_EMPTY;\n}\n\nvoid ipcq_disarm_records",
        "ipcqueue/test_ring.py::TestCorruptPeer::test_looking_and_arming_survive_whatever_stands_there",
    ),
    Mutant(
        "no look again after announcing a wait for space",
        "ipcqueue/core/ring.c",
        "return has_space(s, units) ? IPCQ_DONE : IPCQ_FULL;\n}\n\nvoid ipcq_disarm_space",
        "return IPCQ_FULL;\n}\n\nvoid ipcq_disarm_space",
        "ipcqueue/test_ring.py::TestCorruptPeer::test_looking_and_arming_survive_whatever_stands_there",
    ),
    Mutant(
        "a head that cannot be true is believed",
        "ipcqueue/core/ends.h",
        "if (head - tail > r->capacity) {",
        "if (0) {",
        "ipcqueue/test_ring.py::TestCorruptPeer::test_a_head_beyond_the_capacity_is_noticed_and_never_forgotten",
    ),
    Mutant(
        "a tail that cannot be true is believed",
        "ipcqueue/core/ends.h",
        "if (head - tail > s->capacity || published - tail > s->capacity) {",
        "if ((void)published, 0) {",
        "ipcqueue/test_ring.py::TestCorruptPeer::test_what_a_batch_has_not_published_yet_cannot_have_been_taken",
    ),
    Mutant(
        "a corrupt peer is forgiven",
        "ipcqueue/core/ends.h",
        "    if (r->corrupt)\n        return IPCQ_CORRUPT;\n    uint64_t tail = atomic_load_explicit(&r->tail",
        "    uint64_t tail = atomic_load_explicit(&r->tail",
        "ipcqueue/test_frames.py::test_a_peer_that_takes_back_what_is_being_taken_is_corrupt_for_ever",
    ),
    Mutant(
        "a large message goes by the fast path, which another thread takes beside its copy",
        "ipcqueue/core/python/direct.h",
        "frame->size <= IPCQ_LARGE; /* else",
        "1; /* else",
        "conformance/test_large.py::test_other_threads_run_during_a_copy_and_find_the_end_reserved",
    ),
    Mutant(
        "the ring is open to others during a large copy into it",
        "ipcqueue/_ring/frame_sender.py",
        "                self._parked, self._ring = ring, None\n                try:\n                    code = int(",
        "                self._parked = ring\n                try:\n                    code = int(",
        "conformance/test_large.py::test_a_message_is_whole_where_others_are_sent_meanwhile",
    ),
    Mutant(
        "a large copy goes on where a signal handler has sent",
        "ipcqueue/_ring/frame_sender.py",
        "if self._parked is not ring or self._borrower is not None:",
        "if False:",
        "conformance/test_large.py::test_a_handler_with_a_loan_in_the_middle_is_no_victim",
    ),
    Mutant(
        "a large copy goes on where a signal handler has received",
        "ipcqueue/_ring/frame_builder.py",
        "            if self._large is not large:\n                return None\n",
        "",
        "conformance/test_large.py::test_a_handler_that_receives_in_the_middle_takes_it",
    ),
    Mutant(
        "Trio copies a large message in one step",
        "ipcqueue/_ring/frame_builder.py",
        "if self.in_steps and large.done < size:",
        "if False:",
        "conformance/test_large.py::test_under_trio_others_run_between_the_pieces",
    ),
    Mutant(
        "who waits for a control message looks for it for ever beside a large message",
        "ipcqueue/_link/side.py",
        "return event is RECORDS and self.receiver is not None",
        "return self.receiver is not None",
        "conformance/test_large.py::test_under_trio_who_waits_for_something_else_waits_beside_a_piece",
    ),
    Mutant(
        "an attempt copies two pieces",
        "ipcqueue/_ring/frame_builder.py",
        "budget.spent = True  # by a piece of a large message",
        "pass",
        "conformance/test_large.py::test_an_attempt_copies_one_piece",
    ),
    Mutant(
        "a message that is copied in part is forgotten at the end",
        "ipcqueue/_link/receiving.py",
        "                if result is not None or receiver.unfinished:\n",
        "                if result is not None:\n",
        "conformance/test_large.py::test_under_trio_others_run_between_the_pieces",
    ),
    Mutant(
        "a batch is sent in one step",
        "ipcqueue/core/python/batches.c",
        "while (at < end && moved < IPCQ_MAX_BYTES) {",
        "while ((void)moved, at < end) {",
        "conformance/test_large.py::test_a_batch_is_sent_some_megabytes_at_a_time",
    ),
    Mutant(
        "a call without a limit puts together all messages there are",
        "ipcqueue/_ring/bounds.py",
        "self.most = MAX_BUILT if bounded else MAX_AT_ONCE << 32",
        "self.most = MAX_AT_ONCE << 32",
        "conformance/test_bounds.py::TestByNumber::test_messages_that_python_puts_together",
    ),
    Mutant(
        "bytes of messages are not counted",
        "ipcqueue/_ring/bounds.py",
        "self._bytes -= size",
        "pass",
        "conformance/test_bounds.py::TestByBytes::test_messages_outside_the_ring_also_with_a_limit",
    ),
    Mutant(
        "bytes of records are not counted",
        "ipcqueue/_ring/slot_receiver.py",
        "max(1, min(most, MAX_BYTES // self._size))",
        "most",
        "conformance/test_bounds.py::TestByBytes::test_records",
    ),
    Mutant(
        "a budget that is spent is spent again",
        "ipcqueue/_ring/frame_builder.py",
        "if budget is not None and budget.spent and (self._raw or self.unfinished):",
        "if False:",
        "conformance/test_bounds.py::TestByBytes::test_messages_in_the_ring",
    ),
    Mutant(
        "decoding takes all the time it wants",
        "ipcqueue/_ring/frame_receiver.py",
        "if timed and budget is not None and looks_after(len(records)) and not budget.has_time():",
        "if False:",
        "conformance/test_bounds.py::TestByTime::test_messages_that_a_function_decodes",
    ),
    Mutant(
        "records that a class makes take all the time they want",
        "ipcqueue/_ring/slot_receiver.py",
        "return self._most_at_once if pace is None else min(self._most_at_once, pace.records)",
        "return self._most_at_once",
        "conformance/test_bounds.py::TestByTime::test_records_of_a_class_of_the_application",
    ),
    Mutant(
        "C makes all messages there are",
        "ipcqueue/_ring/frame_receiver.py",
        "self.many(limit, MAX_BYTES, MAX_BUILT) if bounded else self.many(limit)",
        "self.many(limit)",
        "conformance/test_bounds.py::TestByBytes::test_messages_in_the_ring",
    ),
    Mutant(
        "looking beside a thread of the same process",
        "ipcqueue/_ring/patience.py",
        "if not shares and processors_allowed() >= FEWEST_PROCESSORS:",
        "if processors_allowed() >= FEWEST_PROCESSORS:",
        "ipcqueue/test_waiting.py::TestSharing::test_between_threads_of_a_process_the_default_is_to_sleep",
    ),
    Mutant(
        "looking where a cgroup allows one processor",
        "ipcqueue/_ring/patience.py",
        "if not shares and processors_allowed() >= FEWEST_PROCESSORS:",
        "if not shares:",
        "ipcqueue/test_waiting.py::TestSharing::test_a_cgroup_that_allows_less_than_two_processors_counts_as_one",
    ),
    Mutant(
        "the affinity is read once",
        "ipcqueue/core/ring.c",
        "if (seen == 0 || now - seen >= AFFINITY_NS) {",
        "if (seen == 0) {",
        "ipcqueue/test_waiting.py::TestSharing::test_a_change_of_the_affinity_is_noticed",
    ),
    Mutant(
        "looking on one processor",
        "ipcqueue/core/ring.c",
        "    if (yields(p))\n        return 0;\n",
        "",
        "ipcqueue/test_waiting.py::TestSharing::test_on_one_processor_the_default_is_to_sleep",
    ),
    Mutant(
        "a doorbell for each record",
        "ipcqueue/core/ends.h",
        "if (!(epoch & 1u) || epoch == bell->rung)",
        "if (!(epoch & 1u))",
        "ipcqueue/test_ring.py::TestDoorbells::test_one_for_a_record_however_many_follow",
    ),
    Mutant(
        "a doorbell although nobody waits",
        "ipcqueue/core/ends.h",
        "if (!(epoch & 1u) || epoch == bell->rung)",
        "if (epoch == bell->rung)",
        "ipcqueue/test_ring.py::TestDoorbells::test_disarming_takes_it_back",
    ),
    Mutant(
        "a wait announced twice has one number",
        "ipcqueue/core/ring.c",
        "bell->epoch += (bell->epoch & 1u) ? 2 : 1;",
        "bell->epoch |= 1u;",
        "ipcqueue/test_ring.py::TestDoorbells::test_arming_again_asks_for_another",
    ),
    Mutant(
        "a forked child may use the ring",
        "ipcqueue/core/ends.h",
        "return generation != atomic_load_explicit(forks, memory_order_relaxed);",
        "(void)generation, (void)forks; return 0;",
        "ipcqueue/test_ring.py::TestEnds::test_a_forked_child_can_use_neither_end",
    ),
    Mutant(
        "a batch does not wrap",
        "ipcqueue/core/slots.c",
        "memcpy(s->own->slots, from + first * size, (n - first) * size);",
        "",
        "ipcqueue/test_ring.py::TestRecords::test_batches_wrap_anywhere",
    ),
    Mutant(
        "published before it is written",
        "ipcqueue/core/slots.c",
        "    copy_in(s, head, record, 1);\n    publish(s, head + 1, 1);",
        "    publish(s, head + 1, 1);\n    copy_in(s, head, record, 1);",
        "reliability/test_weak_memory.py::test_no_schedule_loses_a_record_or_a_wake_up[slots-1]",
    ),
    Mutant(
        "given back before it is read",
        "ipcqueue/core/slots.c",
        "    copy_out(r, tail, into, n);\n    tail += n;\n    give_back(r, tail);",
        "    give_back(r, tail + n);\n    copy_out(r, tail, into, n);\n    tail += n;",
        "reliability/test_weak_memory.py::test_no_schedule_loses_a_record_or_a_wake_up[slots-1]",
    ),
    Mutant(
        "no fence before the look at who sleeps",
        "ipcqueue/core/ends.h",
        "    atomic_thread_fence(memory_order_seq_cst);\n    uint32_t epoch",
        "    uint32_t epoch",
        "reliability/test_weak_memory.py::test_no_schedule_loses_a_record_or_a_wake_up[slots-1]",
    ),
    Mutant(
        "no fence after announcing sleep",
        "ipcqueue/core/ring.c",
        "    atomic_thread_fence(memory_order_seq_cst); /* partner: ring_bell in ends.h */\n",
        "",
        "reliability/test_weak_memory.py::test_no_schedule_loses_a_record_or_a_wake_up[slots-1]",
    ),
    Mutant(
        "head is stored without release",
        "ipcqueue/core/ends.h",
        "atomic_store_explicit(&s->own->head, head, memory_order_release);",
        "atomic_store_explicit(&s->own->head, head, memory_order_relaxed);",
        "reliability/test_core_aarch64.py::test_load_acquire_store_release_and_fence_are_in_the_object_code",
    ),
    Mutant(
        "tail is loaded without acquire",
        "ipcqueue/core/ends.h",
        "atomic_load_explicit(&s->peer->tail, memory_order_acquire)",
        "atomic_load_explicit(&s->peer->tail, memory_order_relaxed)",
        "reliability/test_core_aarch64.py::test_load_acquire_store_release_and_fence_are_in_the_object_code",
    ),
    Mutant(
        "a frame may reach beyond what is published",
        "ipcqueue/core/frames.c",
        "        extent(frame->size) > available) {",
        "        0) {",
        "ipcqueue/test_frames.py::test_a_peer_that_breaks_the_protocol_is_found_out_and_dropped",
    ),
    Mutant(
        "a frame may be larger than is accepted",
        "ipcqueue/core/frames.c",
        "if (frame->size > most || ",
        "if (",
        "ipcqueue/test_frames.py::test_a_peer_that_breaks_the_protocol_is_found_out_and_dropped",
    ),
    Mutant(
        "flags that mean nothing are accepted",
        "ipcqueue/core/frames.c",
        " || (frame->flags & ~IPCQ_KNOWN_FLAGS)",
        "",
        "ipcqueue/test_frames.py::test_a_peer_that_breaks_the_protocol_is_found_out_and_dropped",
    ),
    Mutant(
        "any number of messages with descriptors under way",
        "ipcqueue/core/frames.c",
        "if (frame->fds + frame->regions == 0 || s->attached_count < IPCQ_MAX_ATTACHED)",
        "if (1)",
        "ipcqueue/test_frames.py::test_no_more_frames_with_descriptors_are_under_way_than_the_receiver_keeps",
    ),
    Mutant(
        "a message before its descriptors",
        "ipcqueue/core/frames.c",
        "    if (result == IPCQ_DONE && frame->fds + frame->regions)\n        result = send_fds(s, fds, (size_t)(frame->fds + frame->regions));\n    if (result != IPCQ_DONE)\n        return result;\n    write_frame(s, head, frame, payload);\n    head += extent(frame->size);\n    if (frame->fds + frame->regions)\n        s->attached[s->attached_count++ % IPCQ_MAX_ATTACHED] = head;\n    s->published.messages++;\n    publish(s, head, 1);\n    return IPCQ_DONE;",
        "    if (result != IPCQ_DONE)\n        return result;\n    write_frame(s, head, frame, payload);\n    head += extent(frame->size);\n    if (frame->fds + frame->regions)\n        s->attached[s->attached_count++ % IPCQ_MAX_ATTACHED] = head;\n    s->published.messages++;\n    publish(s, head, 1);\n    if (frame->fds + frame->regions)\n        result = send_fds(s, fds, (size_t)(frame->fds + frame->regions));\n    return result;",
        "ipcqueue/test_attachments.py::test_a_descriptor_that_is_closed_at_the_last_moment_is_an_oserror_and_nothing_is_sent",
    ),
    Mutant(
        "a sender that never asks whether its peer lives",
        "ipcqueue/core/ends.h",
        "    if (poll(p, 2, 0) > 0)\n        return 1;",
        "    if (poll(p, 2, 0) < 0)\n        return 1;",
        "ipcqueue/test_ring.py::TestEnds::test_pushing_to_a_receiver_that_hung_up_is_noticed",
    ),
    Mutant(
        "a shortage of memory is passed over",
        "ipcqueue/core/segment.c",
        "return errno == EINVAL ? 0 : -1;",
        "return 0;",
        "ipcqueue/test_shortage.py::test_a_kernel_that_cannot_populate_mappings_will_do",
    ),
    Mutant(
        "seals are not asked for",
        "fdpass/_memfd.py",
        "if int(seals) & ~present:",
        "if False:",
        "ipcqueue/test_handshake.py::TestDescriptors::test_what_is_no_sealed_memory_file_is_refused",
    ),
    Mutant(
        "size is not asked for",
        "fdpass/_memfd.py",
        "if not 0 < status.st_size <= max_size:",
        "if False:",
        "ipcqueue/test_handshake.py::TestDescriptors::test_a_size_that_is_none_is_refused",
    ),
    Mutant(
        "memory of huge pages is accepted",
        "fdpass/_memfd.py",
        "if status.st_dev != _device_of_memfds():",
        "if False:",
        "fdpass/test_memfd.py::TestAdopt::test_a_memory_file_of_huge_pages_is_refused",
    ),
    Mutant(
        "holes are accepted",
        "fdpass/_pages.py",
        "    if reserved < wanted:",
        "    if False:",
        "fdpass/test_memfd.py::TestAdopt::test_a_memory_file_with_a_hole_is_refused_before_it_costs_memory",
    ),
    Mutant(
        "blocks beyond the end hide holes",
        "fdpass/_pages.py",
        "                os.ftruncate(number, size)\n",
        "                pass\n",
        "fdpass/test_pages.py::test_blocks_beyond_the_end_hide_no_holes",
    ),
    Mutant(
        "pages that nobody wrote can be dropped",
        "fdpass/_pages.py",
        "            os.posix_fallocate(number, start, min(_AT_ONCE, size - start))",
        "            pass",
        "fdpass/test_pages.py::test_what_was_taken_loses_no_page",
    ),
    Mutant(
        "a failure of this machine is blamed on who made the file, as its pages are kept",
        "fdpass/_pages.py",
        "            _check_blocks(number, size)\n            raise\n",
        '            raise NotReserved(_whole_pages(size), "less") from error\n',
        "ipcqueue/test_outside.py::test_what_fails_here_is_not_blamed_on_the_peer_and_its_message_is_kept",
    ),
    Mutant(
        "a failure of this machine is blamed on who made the file, as it is asked",
        "fdpass/_pages.py",
        "    if error.errno in (errno.EPERM, errno.EACCES):",
        "    if True:",
        "fdpass/test_pages.py::test_what_fails_here_is_not_the_fault_of_who_made_the_file",
    ),
    Mutant(
        "a file that dropped pages as they were kept is a failure of this machine",
        "fdpass/_pages.py",
        "            _check_blocks(number, size)\n            raise\n",
        "            raise\n",
        "fdpass/test_pages.py::test_pages_lost_while_they_are_being_kept_are_a_refusal",
    ),
    Mutant(
        "that a directory of ours may not be opened is blamed on somebody else",
        "memenpsf/_places.py",
        "        if fault is None and error.errno == errno.EACCES:",
        "        if False:",
        "memenpsf/test_address.py::test_that_a_directory_of_ours_may_not_be_opened_is_said_as_it_is",
    ),
    Mutant(
        "pages that were dropped are made at the reader's charge",
        "fdpass/_pages.py",
        "        _check_blocks(number, size)\n        try:\n            os.posix_fallocate",
        "        try:\n            os.posix_fallocate",
        "fdpass/test_pages.py::test_a_region_that_has_lost_pages_before_it_is_mapped_is_not_mapped",
    ),
    Mutant(
        "an older kernel is made to wait for a stranger's lock",
        "fdpass/_pages.py",
        "        if not _lock_is_soon_free():\n            _check_cached(number, size)\n        else:",
        "        if True:",
        "fdpass/test_pages.py::test_an_older_kernel_is_asked_without_the_lock",
    ),
    Mutant(
        "a file that anybody may write is waited for",
        "fdpass/_pages.py",
        "return bool(seals & _GROW and seals & (_WRITE | _FUTURE_WRITE))",
        "return True",
        "fdpass/test_pages.py::test_a_writer_who_holds_the_lock_of_a_file_not_sealed_against_it_keeps_nobody_waiting",
    ),
    Mutant(
        "a mapping is made of pages that may be lost",
        "fdpass/_memfd.py",
        "        self.keep_pages()\n        # Linux < 6.7",
        "        # Linux < 6.7",
        "fdpass/test_pages.py::test_a_region_that_was_mapped_loses_no_page",
    ),
    Mutant(
        "a segment is mapped before it keeps its pages",
        "ipcqueue/_ring/segment.py",
        "            memfd.keep_pages()",
        "            pass",
        "ipcqueue/test_segment.py::TestAdopt::test_it_keeps_its_pages_from_before_it_is_mapped",
    ),
    Mutant(
        "a copy of what owns is made",
        "fdpass/_closing.py",
        "class Closable(Owner):",
        "class Closable:",
        "project/test_copies.py::test_what_is_open_stays_open_and_has_one_owner",
    ),
    Mutant(
        "a class that owns may be copied",
        "ipcqueue/_link/process.py",
        "class Process(Owner):",
        "class Process:",
        "project/test_copies.py::test_every_class_refuses_copies_or_is_known_to_own_nothing",
    ),
    Mutant(
        "a message is copied with what it owns",
        "ipcqueue/_records/messages.py",
        "        if self.fds or self.regions:\n            raise cannot_copy",
        "        if False:\n            raise cannot_copy",
        "project/test_copies.py::test_a_message_is_copied_only_without_what_it_owns",
    ),
    Mutant(
        "a file that is refused stays open",
        "fdpass/_memfd.py",
        "                self.keep_pages()\n        except BaseException:\n            close_untrusted([self])\n            raise",
        "                self.keep_pages()\n        except BaseException:\n            self.detach()\n            raise",
        "fdpass/test_memfd.py::TestAdopt::test_it_closes_the_descriptor_of_an_fd_it_refuses",
    ),
    Mutant(
        "memory is not reserved",
        "fdpass/_memfd.py",
        "        os.posix_fallocate(number, 0, size)\n",
        "",
        "fdpass/test_memfd.py::TestCreate::test_any_size_is_reserved_and_zero",
    ),
    Mutant(
        "memory files survive exec",
        "fdpass/_memfd.py",
        "flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING",
        "flags = os.MFD_ALLOW_SEALING",
        "fdpass/test_memfd.py::TestCreate::test_it_has_its_name_does_not_leak_to_exec_and_is_never_executable",
    ),
    Mutant(
        "received descriptors survive exec",
        "fdpass/_rights.py",
        "RECEIVE_FLAGS = socket.MSG_CMSG_CLOEXEC",
        "RECEIVE_FLAGS = 0",
        "fdpass/test_socket.py::test_received_descriptors_do_not_leak_to_exec",
    ),
    Mutant(
        "truncated descriptors are ignored in a message",
        "fdpass/_rights.py",
        "if flags & _CTRUNC:",
        "if False:",
        "fdpass/test_socket.py::test_at_the_limit_of_open_descriptors_those_that_came_are_closed",
    ),
    Mutant(
        "truncated descriptors are ignored in a connection",
        "ipcqueue/_link/wire.py",
        "truncated = bool(flags & _CTRUNC)",
        "truncated = False",
        "ipcqueue/test_attachments.py::test_descriptors_that_this_process_may_not_open_end_the_connection",
    ),
    Mutant(
        "descriptors nobody asked for stay open",
        "ipcqueue/_link/wire.py",
        "        fdpass.close_untrusted(chain(*self._unwelcome))\n        if not truncated:",
        "        if not truncated:",
        "ipcqueue/test_endpoint.py::TestCorruptPeer::test_descriptors_nobody_asked_for_which_are_closed",
    ),
    Mutant(
        "who closes waits for a stranger's file",
        "fdpass/_untrusted.py",
        "if done.acquire(timeout=PATIENCE)",
        "if done.acquire()",
        "fdpass/test_untrusted.py::test_who_closes_waits_for_no_file_and_for_no_second_one_a_moment",
    ),
    Mutant(
        "a subinterpreter that shares the lock is refused",
        "ipcqueue/core/python/module.c",
        "if (PyInterpreterState_Get() != PyInterpreterState_Main()) {",
        "if (0) {",
        "project/test_interpreters.py::test_a_subinterpreter_is_refused_in_words_and_the_main_one_works",
    ),
    Mutant(
        "an extension module says that it relies on the lock",
        "ipcqueue/core/python/module.c",
        "    {Py_mod_gil, Py_MOD_GIL_USED}, /*",
        "    /*",
        "project/test_interpreters.py::test_every_extension_module_says_what_it_supports",
    ),
    Mutant(
        "nothing runs with the lock switched off",
        "ipcqueue/_interpreter.py",
        "if not lock_is_on():",
        "if False:",
        "project/test_interpreters.py::test_without_the_lock_nothing_is_imported",
    ),
    Mutant(
        "no thread outlives a subinterpreter where that aborts the process",
        "fdpass/_untrusted.py",
        "(quick if THREADS_ABORT or _never_waits(fd) else doubtful)",
        "(quick if _never_waits(fd) else doubtful)",
        "project/test_interpreters.py::test_no_thread_that_closes_a_file_aborts_the_process_when_its_interpreter_ends",
    ),
    Mutant(
        "a thread that could not begin keeps its place",
        "fdpass/_untrusted.py",
        "            if each() is None:",
        "            if False:",
        "fdpass/test_untrusted.py::test_threads_that_could_not_begin_keep_no_place",
    ),
    Mutant(
        "a thread that could not begin is waited for in vain",
        "fdpass/_untrusted.py",
        "        if place() is None:",
        "        if False:",
        "fdpass/test_untrusted.py::test_what_a_thread_that_could_not_begin_leaves_is_closed_by_who_waits_for_it",
    ),
    Mutant(
        "what a thread was closing when it died is forgotten",
        "fdpass/_untrusted.py",
        "                _waiting.append(fd)",
        "                pass",
        "fdpass/test_untrusted.py::test_a_thread_that_dies_leaves_its_place_and_the_rest_to_others",
    ),
    Mutant(
        "what is refused is closed by who refuses it",
        "fdpass/_region.py",
        "            close_untrusted(owned)\n",
        "            for fd in owned:\n                fd.close()\n",
        "fdpass/test_untrusted.py::test_who_takes_for_memory_what_is_none_does_not_wait_for_it",
    ),
    Mutant(
        "the owner's memory can be written by others",
        "ipcqueue/_ring/segment.py",
        "        memfd.seal(SEALS)\n",
        "        memfd.seal(SEALS & ~Seal.FUTURE_WRITE)\n",
        "ipcqueue/test_segment.py::TestLayout::test_indices_slots_epochs_and_counters_stand_where_the_design_says",
    ),
    Mutant(
        "our own segment is believed",
        "ipcqueue/_link/opening.py",
        "if os.path.samestat(",
        "if False and os.path.samestat(",
        "ipcqueue/test_handshake.py::TestDescriptors::test_our_own_segment_sent_back_is_a_corrupt_peer",
    ),
    Mutant(
        "everybody is admitted",
        "ipcqueue/_link/opening.py",
        "if admitted is not None and self.peer.uid not in admitted:",
        "if False:",
        "ipcqueue/test_handshake.py::TestCredentials::test_who_is_not_admitted_is_refused_before_we_say_hello",
    ),
    Mutant(
        "a handshake may take for ever",
        "ipcqueue/_link/opening.py",
        "if monotonic() >= self.deadline:",
        "if False:",
        "ipcqueue/test_handshake.py::TestGreetings::test_a_silent_peer_is_given_up_in_time",
    ),
    Mutant(
        "an inbox without a limit",
        "ipcqueue/_link/wire.py",
        "if len(self.inbox) > MAX_INBOX:",
        "if False:",
        "ipcqueue/test_endpoint.py::TestMessages::test_as_many_may_wait_as_is_said_and_no_more",
    ),
    Mutant(
        "an application sees trouble of a ring as it is",
        "ipcqueue/_verbs.py",
        "except RingError as error:",
        "except ZeroDivisionError as error:",
        "conformance/test_trouble.py::test_a_side_that_is_closed",
    ),
    Mutant(
        "who waits for space takes a peer that has left for it",
        "ipcqueue/_link/side.py",
        "sender.find_space(sender.enough)",
        "sender.has_space(sender.enough)",
        "conformance/test_trouble.py::test_a_peer_that_has_ended",
    ),
    Mutant(
        "the end overtakes the last records",
        "ipcqueue/_link/receiving.py",
        "                if end is not None:\n                    receiver.drop",
        "                if self.ending.receiving:\n                    receiver.drop",
        "ipcqueue/test_endpoint.py::TestPeersEnd::test_what_is_published_last_is_not_overtaken_by_the_end",
    ),
    Mutant(
        "the end is noted before the ring is empty",
        "ipcqueue/_link/receiving.py",
        "                # After this comes no call that Ctrl-C could interrupt, if there is a result.\n",
        "                if end is not None:\n                    self.raise_end()\n",
        "ipcqueue/test_endpoint.py::TestPeersEnd::test_what_is_held_after_an_interrupt_comes_before_the_end",
    ),
    Mutant(
        "a goodbye is taken for a death",
        "ipcqueue/_link/endpoint.py",
        "            self._own.mapping.set_closed(own, self._peer.mapping, sock.fileno())\n",
        "",
        "ipcqueue/test_endpoint.py::TestMessages::test_they_are_all_taken_before_the_end_is_told",
    ),
    Mutant(
        "a death is taken for a goodbye",
        "ipcqueue/_link/endpoint.py",
        "        closed = self._peer.mapping.closed()\n",
        "        closed = self._peer.mapping.closed() or IN_ORDER\n",
        "ipcqueue/test_endpoint.py::TestPeersEnd::test_a_peer_that_hangs_up_without_a_word_has_died",
    ),
    Mutant(
        "words that are reserved may be anything",
        "ipcqueue/_link/handshake.py",
        "    if peer.reserved:\n",
        "    if False:\n",
        "reliability/test_wrong_descriptors.py",
    ),
    Mutant(
        "a sleeper looks for records only, and not for the end of the stream",
        "ipcqueue/core/ring.c",
        "               atomic_load_explicit(&r->tail, memory_order_relaxed) ||\n"
        "           sends_none(r->peer_words);\n",
        "               atomic_load_explicit(&r->tail, memory_order_relaxed);\n",
        "conformance/test_half_close.py::test_the_second_look_before_sleeping_covers_the_end",
    ),
    Mutant(
        "the end of a stream wakes nobody",
        "ipcqueue/core/ring.c",
        "        wake(&words->wait_records, bell, IPCQ_OPCODE_WRITE);\n",
        "",
        "conformance/test_half_close.py::test_who_sleeps_is_woken_by_the_end_of_the_stream",
    ),
    Mutant(
        "a side that only receives any more takes nothing, either",
        "ipcqueue/core/ends.h",
        "    return (atomic_load_explicit(&peer->closed, memory_order_relaxed) & "
        "~(uint32_t)IPCQ_NO_MORE) != 0;\n",
        "    return atomic_load_explicit(&peer->closed, memory_order_relaxed) != 0;\n",
        "conformance/test_half_close.py::test_a_side_that_sends_no_more_goes_on_receiving",
    ),
    Mutant(
        "the end of a stream is told before a refusal that came before it",
        "ipcqueue/_link/receiving.py",
        "                self.read_if_free()  # what it sent before comes first: a refusal, for instance\n",
        "",
        "ipcqueue/test_endpoint.py::TestPeersEnd::test_a_refusal_comes_before_the_end_that_follows_it",
    ),
    Mutant(
        "bits that are no end are taken for one",
        "ipcqueue/_link/endpoint.py",
        "        if closed & ~KNOWN_ENDS:\n",
        "        if False:\n",
        "ipcqueue/test_endpoint.py::TestPeersEnd::test_bits_that_are_no_end_are_corrupt",
    ),
    Mutant(
        "what was said of an end is taken back",
        "ipcqueue/_link/ending.py",
        "        complete = self.own & ABORTED or self.own & IN_ORDER == IN_ORDER\n",
        "        complete = False\n",
        "conformance/test_half_close.py::test_nothing_is_added_to_an_end_that_is_complete",
    ),
    Mutant(
        "who receives obeys an abort before the end of the stream",
        "ipcqueue/_link/ending.py",
        "    if closed & NO_MORE:\n",
        "    if closed & NO_MORE and not closed & ABORTED:\n",
        "conformance/test_half_close.py::test_what_each_call_raises_for_every_pair_of_ends",
    ),
    Mutant(
        "a crash after the end of the stream is no crash to who sends",
        "ipcqueue/_link/ending.py",
        "    return died() if gone else None\n\n\ndef told_sender",
        "    return died() if gone else None\n\n\n"
        "def told_sender(closed, *, gone):\n"
        "    return told_sender_of(closed | (TAKES_NONE if closed & NO_MORE and gone else 0), gone=gone)"
        "\n\n\ndef told_sender_of",
        "conformance/test_half_close.py::test_what_each_call_raises_for_every_pair_of_ends",
    ),
    Mutant(
        "a block that an exception leaves ends in good order",
        "ipcqueue/_leaving.py",
        "        interface.abort()\n",
        "        interface.close()\n",
        "conformance/test_half_close.py::test_how_a_block_is_left_says_how_it_ended",
    ),
    Mutant(
        "the end of another connection is a good end of this block",
        "ipcqueue/_leaving.py",
        "        return interface_of(error) is interface\n",
        "        return True\n",
        "conformance/test_half_close.py::test_how_a_block_is_left_says_how_it_ended",
    ),
    Mutant(
        "an exit with any code that is equal to 0 is a good end",
        "ipcqueue/_leaving.py",
        "error.code is None or (isinstance(error.code, int) and error.code == 0)",
        "error.code in {None, 0}",
        "conformance/test_half_close.py::test_how_a_block_is_left_says_how_it_ended",
    ),
    Mutant(
        "a group is a good end if one of its members is",
        "ipcqueue/_leaving.py",
        "        return all(in_order(each",
        "        return any(in_order(each",
        "conformance/test_half_close.py::test_how_a_block_is_left_says_how_it_ended",
    ),
    Mutant(
        "nobody watches the peer's process",
        "ipcqueue/_link/opening.py",
        "            self.process = process_behind(self.sock, sender, self.peer, pid)\n",
        "            if sender is not None:\n                sender.close()\n",
        "reliability/test_withheld_end.py::test_every_verb_says_that_the_peer_died[recv-spin]",
    ),
    Mutant(
        "the process is asked before the socket is read",
        "ipcqueue/_link/wire.py",
        "        if not data:\n            self.hung_up = True",
        "        if not data or (self.process is not None and self.process.has_exited()):\n            self.hung_up = True",
        "reliability/test_withheld_end.py::test_descriptors_that_were_sent_come_with_their_messages",
    ),
    Mutant(
        "a server removes the socket file of another",
        "memenpsf/_address.py",
        "            if self._files.pop() == _inode(self.address.path.lstat()):\n",
        "            if self._files.pop():\n",
        "memenpsf/test_address.py::test_closing_leaves_the_file_of_a_successor",
    ),
    Mutant(
        "a live server is replaced",
        "memenpsf/_address.py",
        "        _refuse_if_live(path)\n        uid",
        "        uid",
        "memenpsf/test_address.py::test_a_live_server_is_not_replaced_and_takes_the_probe_for_nobody",
    ),
    Mutant(
        "a server does not notice that another one took its path as it started",
        "memenpsf/_address.py",
        "        if _inode(path.lstat()) != inode:\n",
        "        if False:\n",
        "memenpsf/test_starting.py::test_a_server_that_was_replaced_as_it_started_says_so",
    ),
    Mutant(
        "another user's server that is just starting is taken for dead",
        "memenpsf/_address.py",
        "        if ours or not just_bound(status):\n",
        "        if True:\n",
        "memenpsf/test_starting.py::test_a_server_that_may_be_starting_without_our_lock_is_waited_for",
    ),
    Mutant(
        "a client takes a server that is just starting for dead",
        "memenpsf/_seeking.py",
        "self.may_be_starting |= just_bound(candidate.path.stat())",
        "pass",
        "memenpsf/test_starting.py::test_a_client_waits_for_a_server_that_is_just_starting",
    ),
    Mutant(
        "a client looks for a server in the time of its handshake",
        "memenpsf/_seeking.py",
        "                deadline = None\n",
        "                deadline = deadline or deadline_of(timeout)\n",
        "memenpsf/test_starting.py::test_a_client_that_tries_again_finds_a_server_that_starts_later",
    ),
    Mutant(
        "a client tries again for ever where it may not look",
        "memenpsf/_seeking.py",
        "(now >= until or search.forbidden)",
        "now >= until",
        "memenpsf/test_starting.py::test_it_does_not_try_again_where_this_user_may_not_look",
    ),
    Mutant(
        "a listening socket that was given is shut down for all",
        "memenpsf/_given.py",
        "        with contextlib.suppress(ValueError):  # it is closed: nobody waits any more\n",
        "        super().interrupt()\n        if False:\n",
        "conformance/test_given.py::test_who_shares_the_socket_goes_on_listening",
    ),
    Mutant(
        "a listening socket that was given makes accept() wait",
        "memenpsf/_given.py",
        "        sock.setblocking(False)\n",
        "",
        "conformance/test_given.py::test_clients_are_accepted_and_the_file_stays",
    ),
    Mutant(
        "a server spins on a listening socket that another has shut down",
        "memenpsf/_pending.py",
        "            if self.bound.is_shut_down and not self.closed:\n",
        "            if False:\n",
        "conformance/test_given.py::test_a_socket_that_another_process_shuts_down_is_closed",
    ),
    Mutant(
        "an end is opened again by its own process",
        "memenpsf/_pipe.py",
        "        sock, self._sock = self._checked(), None\n        return sock\n",
        "        return self._checked()\n",
        "memenpsf/test_pipe.py::test_an_end_is_opened_once",
    ),
    Mutant(
        "the end of a child is for the children of the child",
        "memenpsf/_pipe.py",
        "    sock.set_inheritable(False)  # not for",
        "    sock.set_inheritable(True)  # not for",
        "memenpsf/test_pipe.py::test_the_end_of_a_program_is_not_for_its_children",
    ),
    Mutant(
        "an end that is handed to a child has lost whom it admits",
        "memenpsf/_pipe.py",
        '        options["allow_uids"] = terms.allow_uids\n',
        "        pass\n",
        "memenpsf/test_pipe.py::test_every_kind_of_record_is_handed_on_with_its_options",
    ),
    Mutant(
        "a server is deaf before its file is removed",
        "memenpsf/_listener.py",
        "        pending.bound.remove_file()  #",
        "        #",
        "memenpsf/test_starting.py::test_the_file_is_gone_before_the_server_is_deaf",
    ),
    Mutant(
        "a child forked while a server starts keeps the lock",
        "memenpsf/_places.py",
        "                ours.callback(fcntl.flock, fd, fcntl.LOCK_UN)\n",
        "",
        "memenpsf/test_places.py::test_a_child_forked_under_the_lock_does_not_keep_it",
    ),
    Mutant(
        "a directory is made where another user's things are",
        "memenpsf/_places.py",
        "        if owner != uid:\n",
        "        if False:\n",
        "memenpsf/test_places.py::test_a_runtime_directory_of_another_user_is_not_used",
    ),
    Mutant(
        "a directory of another user serves for names",
        "memenpsf/_places.py",
        "    if status.st_uid != uid or stat",
        "    if stat",
        "memenpsf/test_places.py::test_what_another_user_made_in_a_runtime_directory_locks_nobody_out",
    ),
    Mutant(
        "a known name in /tmp locks its user out",
        "memenpsf/_places.py",
        "    if not locked and candidates",
        "    if False and candidates",
        "memenpsf/test_places.py::test_whoever_is_first_to_make_a_known_name_in_tmp_keeps_nobody_out",
    ),
    Mutant(
        "a server does not look for a live one in the other places",
        "memenpsf/_address.py",
        "                for elsewhere in locked[1:]:\n",
        "                for elsewhere in ():\n",
        "memenpsf/test_places.py::test_a_service_without_a_session_and_a_client_with_one_find_each_other",
    ),
    Mutant(
        "names of strangers are printed as they are",
        "memenpsf/_seeking.py",
        "    shown = [repr(",
        "    shown = [str(",
        "memenpsf/test_places.py::test_names_of_strangers_are_escaped_and_few_and_short",
    ),
    Mutant(
        "what took the place of a socket file gets its mode",
        "memenpsf/_address.py",
        "    if not _is_our_socket(status):\n",
        "    if False:\n",
        "memenpsf/test_permissions.py::test_what_takes_the_place_of_the_file_keeps_its_mode",
    ),
    Mutant(
        "the umask takes away of the mode of a socket file",
        "memenpsf/_address.py",
        "    os.chmod(itself, wanted.mode)",
        "    pass",
        "memenpsf/test_permissions.py::test_the_socket_file_has_the_mode_whatever_the_umask",
    ),
    Mutant(
        "an unmapped user is admitted as this one",
        "ipcqueue/_link/opening.py",
        "if admitted is not None and fdpass.is_ambiguous_uid(self.peer.uid):",
        "if False:",
        "memenpsf/test_permissions.py::test_no_unmapped_user_is_admitted_as_this_one_whatever_allow_uids_says",
    ),
    Mutant(
        "an opcode without meaning is passed over",
        "ipcqueue/_link/control.py",
        "            elif opcode not in (Opcode.WRITE, Opcode.READ, Opcode.FDS):",
        "            elif False:",
        "ipcqueue/test_control.py::TestParser::test_every_opcode_without_meaning_is_a_corrupt_peer",
    ),
    Mutant(
        "a message may reach beyond its region",
        "ipcqueue/_ring/outside.py",
        "if not 0 < size <= min(mapping.size, max_message):",
        "if False:",
        "ipcqueue/test_frames.py::test_a_peer_that_breaks_the_protocol_is_found_out_and_dropped",
    ),
    Mutant(
        "a record that waits for space is encoded again by a thread",
        "ipcqueue/_verbs.py",
        "self._threads.push_left(left, timeout)",
        "self._threads.push(record, timeout, None, None)",
        "conformance/test_messages.py::test_a_record_is_encoded_once_however_long_it_waits[threads]",
    ),
    Mutant(
        "a record that waits for space is encoded again by a task",
        "memenpsf/_tasks/interface.py",
        "endpoint.sending().parcel_of(left)",
        "endpoint.sending().parcel(record)",
        "conformance/test_messages.py::test_a_record_is_encoded_once_however_long_it_waits[trio]",
    ),
    Mutant(
        "a sleeper's timeout is forgotten",
        "ipcqueue/_link/plans.py",
        "        elif self._left() <= 0:\n",
        "        elif False:\n",
        "ipcqueue/test_blocking.py::TestTimeouts::test_what_does_not_come_in_time_is_none",
    ),
    Mutant(
        "a user's share is never given back",
        "memenpsf/_shares.py",
        "        self._shares.discard(reference)\n",
        "",
        "memenpsf/test_quota.py::test_each_user_shares_as_many_bytes_as_the_limit",
    ),
    Mutant(
        "a user's memory is not counted",
        "ipcqueue/_link/opening.py",
        "            self.lease.take(size)\n",
        "            del size\n",
        "memenpsf/test_quota.py::test_a_user_who_shares_too_much_memory_is_refused_before_it_is_mapped",
    ),
    Mutant(
        "a wake-up between two threads is lost",
        "ipcqueue/_link/plans.py",
        "                elif waiter.late:\n",
        "                elif waiters.reading:\n",
        "ipcqueue/test_blocking.py::TestOneSocketForAll::test_who_falls_asleep_while_another_reads_his_doorbell_is_woken",
    ),
    Mutant(
        "a closed socket waits for its peer",
        "fdpass/_untrusted.py",
        "        if _holds_descriptors(sock):\n",
        "        if False:\n",
        "fdpass/test_untrusted.py::test_a_socket_is_dropped_without_waiting_for_what_was_sent_into_it",
    ),
    Mutant(
        "a client that came to nothing costs its user nothing",
        "memenpsf/_candidates.py",
        "        return since + self._rest * 2 ** (times - 2) if times > 1 else 0.0\n",
        "        return 0.0\n",
        "memenpsf/test_quota.py::test_only_the_user_rests_whose_clients_came_to_nothing",
    ),
    Mutant(
        "who lets handshakes hang begins as many as he likes",
        "memenpsf/_candidates.py",
        "        when = theirs[-1] + cooldown if hangs else 0.0\n",
        "        when = 0.0\n",
        "memenpsf/test_quota.py::test_who_lets_handshakes_hang_begins_no_more_than_one_a_respite",
    ),
    Mutant(
        "users that fill all places keep them",
        "memenpsf/_candidates.py",
        "            victim = self.victim(uid) if candidate.spoken else None\n",
        "            victim = None\n",
        "memenpsf/test_quota.py::test_users_that_fill_all_places_give_one_to_another_user",
    ),
    Mutant(
        "one user fills the queue for a handshake",
        "memenpsf/_candidates.py",
        "            excess = _first(self._queues[fullest], spoken=False)\n",
        "            return candidate\n",
        "memenpsf/test_quota.py::test_the_queue_is_bounded_and_its_longest_part_gives_way",
    ),
    Mutant(
        "clients that get no handshake have all the time of the listener",
        "memenpsf/_pending.py",
        "        return PAUSE * turned_away\n",
        "        return 0.0\n",
        "memenpsf/test_quota.py::test_a_pause_follows_clients_that_got_no_handshake",
    ),
    Mutant(
        "descriptors are read before their user has room for them",
        "ipcqueue/_link/wire.py",
        "        if self._lease.fits(count):\n",
        "        if True:\n",
        "memenpsf/test_quota.py::test_what_a_user_has_no_room_for_stays_in_its_socket_and_comes_later",
    ),
    Mutant(
        "descriptors that are left in the socket for now are missed",
        "ipcqueue/_link/receiving.py",
        "                if result is None and (not read or self.wire.held_back):\n",
        "                if result is None and not read:\n",
        "memenpsf/test_quota.py::test_a_message_whose_descriptors_wait_is_no_broken_promise",
    ),
    Mutant(
        "descriptors in flight are nobody's",
        "ipcqueue/_link/flight.py",
        "        if self._lease.fits(count):\n",
        "        if True:\n",
        "memenpsf/test_quota.py::test_what_its_peer_has_not_read_keeps_a_sender_waiting",
    ),
    Mutant(
        "a user with full hands waits for itself",
        "memenpsf/_shares.py",
        "        if attached <= count:\n            return True\n",
        "",
        "memenpsf/test_quota.py::test_a_single_message_always_fits",
    ),
    Mutant(
        "a read brings more descriptors than a message may",
        "ipcqueue/_link/wire.py",
        "whole, unread, room, most, wary) or 0\n",
        "whole, unread, room, -1, wary) or 0\n",
        "memenpsf/test_quota.py::test_of_too_many_descriptors_only_a_few_are_ever_open",
    ),
    Mutant(
        "no reserve at the limit of descriptors",
        "memenpsf/_reserve.py",
        "        if error.errno not in _NONE_LEFT or self._kept is None:",
        "        if True:",
        "memenpsf/test_quota.py::test_at_the_limit_of_descriptors_a_client_is_told_and_nothing_turns_in_circles",
    ),
    Mutant(
        "timeouts by a clock that stands still under freezegun",
        "fdpass/_clock.py",
        "time.clock_gettime(time.CLOCK_MONOTONIC)",
        "time.monotonic()",
        "project/test_clock.py::test_the_clock_goes_on_where_others_stand_still",
    ),
    Mutant(
        "a verb does not say whose its exceptions are",
        "ipcqueue/_verbs.py",
        "            return default if record is None else record\n        except Exception as error:\n"
        "            tag_error(error, self)\n            raise",
        "            return default if record is None else record\n        except Exception:\n"
        "            raise",
        "memenpsf/test_origin.py::test_every_verb_tags_what_it_raises",
    ),
    Mutant(
        "recv forgets what to give when nothing came",
        "ipcqueue/_verbs.py",
        "            return default if record is None else record\n",
        "            return record or default\n",
        "conformance/test_timeouts.py::test_what_receiving_gives_when_nothing_came_is_up_to_the_caller",
    ),
    Mutant(
        "a tag keeps its interface alive",
        "ipcqueue/_origin.py",
        "            object.__setattr__(error, _KEY, _Tag(interface))",
        "            object.__setattr__(error, _KEY, _Tag(interface))\n"
        "            object.__setattr__(error, '_kept', interface)",
        "memenpsf/test_origin.py::test_the_tag_keeps_no_interface_alive",
    ),
    Mutant(
        "a tag is pickled with its exception",
        "ipcqueue/_origin.py",
        "        return type(None), ()",
        "        return super().__reduce__()",
        "memenpsf/test_origin.py::test_a_copy_in_this_process_has_the_tag_and_a_pickled_one_has_not",
    ),
    Mutant(
        "the caller's own exception passes for that of the connection",
        "ipcqueue/_origin.py",
        "    if not leads_outside(error.__traceback__):",
        "    if True:",
        "memenpsf/test_origin.py::test_what_makes_the_records_to_send_raises_for_itself",
    ),
    Mutant(
        "a shortage in a loop in C comes out of no verb",
        "ipcqueue/core/python/iteration.c",
        "        PyErr_Clear(); /* the slow path meets it again, and says",
        "        return NULL; /* the slow path meets it again, and says",
        "memenpsf/test_origin.py::test_so_does_a_loop_that_looks_for_more_where_memory_is_short",
    ),
    Mutant(
        "the end of another connection passes for that of the client",
        "memenpsf/_policy.py",
        "    if interface_of(error) is interface:\n        return Sorted(error, None, None)",
        "    if interface_of(error) is not None:\n        return Sorted(error, None, None)",
        "conformance/test_serve.py::test_the_end_of_a_proxys_upstream_is_no_good_end_of_a_client",
    ),
    Mutant(
        "what a handler raises beside the end of its client is lost",
        "memenpsf/_policy.py",
        "(None, None) if rest is None else rest.split(_is_ordinary)",
        "(None, None)",
        "conformance/test_serve.py::test_a_nursery_of_a_handler_mixes_its_own_with_the_clients_end",
    ),
    Mutant(
        "a group with a cancellation passes for an exception of the handler",
        "memenpsf/_policy.py",
        "    return isinstance(error, Exception) and not isinstance(error, BaseExceptionGroup)",
        "    return isinstance(error, Exception | BaseExceptionGroup)",
        "conformance/test_serve.py::test_a_group_is_taken_apart",
    ),
    Mutant(
        "a client ends a server that raises the failures of its handlers",
        "memenpsf/_policy.py",
        "        if own is None:\n            return passing",
        "        if own is None:\n            return error if self._on_error == 'raise' else passing",
        "conformance/test_serve.py::test_even_with_raise_no_client_ends_the_server",
    ),
    Mutant(
        "silent clients of one user take all threads",
        "memenpsf/_thread_quota.py",
        "        if count >= limit:\n",
        "        if False:\n",
        "memenpsf/test_serve_threads.py::test_silent_clients_of_one_user_do_not_take_all_threads",
    ),
    Mutant(
        "threads are counted for nobody",
        "memenpsf/_serve.py",
        "return [interface.peer.uid for interface in tuple(self._clients)]",
        "return []",
        "memenpsf/test_serve_threads.py::test_a_handler_has_its_thread_until_it_is_done_though_its_client_is_gone",
    ),
    Mutant(
        "handlers may go on for ever",
        "memenpsf/_serve.py",
        "not self._clients, patience)",
        "not self._clients, None)",
        "memenpsf/test_serve_threads.py::test_handlers_that_do_not_finish_in_time_get_closed_and_their_clients_aborted",
    ),
    Mutant(
        "a client that can have no thread ends the server",
        "memenpsf/_serve.py",
        "        except (RuntimeError, MemoryError) as error:",
        "        except MemoryError as error:",
        "conformance/test_serve.py::test_a_client_that_cannot_have_a_thread_is_not_served_and_the_others_are",
    ),
    Mutant(
        "a handshake that ran out of memory stays under way",
        "memenpsf/_pending.py",
        "CAUSED_BY_ONE = (QueueError, OSError, MemoryError)",
        "CAUSED_BY_ONE = (QueueError, OSError)",
        "conformance/test_serve.py::test_a_shortage_on_the_way_in_ends_one_client",
    ),
    Mutant(
        "what a client makes an exception say goes over several lines",
        "ipcqueue/_link/shown.py",
        'return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)',
        "return text",
        "conformance/test_serve.py::test_what_a_client_makes_an_exception_say_stays_on_one_short_line",
    ),
    Mutant(
        "what a run loop took is lost when it raises",
        "memenpsf/_loop.py",
        "            hand_back(error, self._unsent)\n",
        "",
        "conformance/test_loops.py::test_a_peer_that_breaks_the_protocol_is_raised_with_what_was_not_sent",
    ),
    Mutant(
        "a run loop takes the end of another connection for its own",
        "memenpsf/_loop.py",
        "    if interface_of(error) is not interface:\n",
        "    if False:\n",
        "conformance/test_loops.py::test_the_end_of_another_connection_is_no_end_of_this_one",
    ),
    Mutant(
        "what a masked array hides is sent",
        "fdpass/_sendable.py",
        "return _refuse_masked if masked is not None and issubclass(kind, masked) else None",
        "return None",
        "fdpass/test_sendable.py::test_masked_values_are_refused",
    ),
    Mutant(
        "the pointers of ctypes are looked for in formats alone",
        "fdpass/_sendable.py",
        "return _refuse_pointers if _holds_pointers(ctypes, kind) else None",
        "return None",
        "fdpass/test_sendable.py::test_pointers_are_refused",
    ),
    Mutant(
        "objects of numpy are sent",
        "fdpass/_sendable.py",
        'if pointer.search(field_name.sub("", form)):',
        "if not form:",
        "fdpass/test_sendable.py::test_pointers_are_refused",
    ),
    Mutant(
        "memory of any object is a record",
        "ipcqueue/core/python/sender.c",
        "if (self->plain && is_plain(record)) {",
        "if (self->plain && record != NULL) {",
        "conformance/test_values.py::TestPointers::test_their_bytes_are_refused",
    ),
    Mutant(
        "memory of any object is a message",
        "ipcqueue/_records/messages.py",
        "view = exported(data)",
        "view = memoryview(data)",
        "conformance/test_values.py::TestPointers::test_in_messages_too",
    ),
    Mutant(
        "what is masked in a tuple is sent as nan",
        "ipcqueue/_records/structs.py",
        "            if MASKED in loaded and not are_plain(record):",
        "            if not loaded:",
        "conformance/test_values.py::TestMasked::test_one_is_refused",
    ),
    Mutant(
        "what is masked in a list is sent as nan",
        "ipcqueue/_records/arrays.py",
        "        _check_items(np, value)\n    # An object",
        "        pass\n    # An object",
        "conformance/test_values.py::TestMasked::test_one_is_refused",
    ),
    Mutant(
        "what a batch hides is sent",
        "ipcqueue/_records/arrays.py",
        "records = _plain_array(np, records, layout)",
        "records = np.asarray(records)",
        "conformance/test_values.py::TestMasked::test_a_batch_is_refused_as_a_whole",
    ),
    Mutant(
        "an array's own way into an array loses its mask",
        "ipcqueue/_records/arrays.py",
        "given = np.asanyarray(value)",
        "given = np.asarray(value)",
        "conformance/test_values.py::TestMasked::test_one_is_refused",
    ),
    Mutant(
        "who is admitted may change later",
        "ipcqueue/_link/terms.py",
        "self.allow_uids = checked_uids(allow_uids)",
        "self.allow_uids = allow_uids",
        "conformance/test_arguments.py::test_who_is_admitted_is_kept_as_it_was",
    ),
    Mutant(
        "an unknown option is left to Python's words",
        "ipcqueue/_connection.py",
        "            check_options(type(self).__name__, options)\n",
        "",
        "conformance/test_arguments.py::TestDoors::test_an_unknown_option_is_named_with_the_nearest",
    ),
    Mutant(
        "the unit of numpy's times is forgotten",
        "fdpass/_numbers.py",
        'return float(given / type(given)(1, "s"))',
        "return float(given)",
        "fdpass/test_numbers.py::test_a_time_is_seconds_or_says_its_unit",
    ),
    Mutant(
        "a bad frame closes a region of a message before it",
        "ipcqueue/_ring/frame_builder.py",
        "if owned and all(each.regions is not owned[-1] for each in built):",
        "if owned and not (built and built[-1].regions is owned[-1]):",
        "ipcqueue/test_attachments.py::test_a_bad_frame_closes_no_region_of_a_message_before_it",
    ),
    Mutant(
        "the rest of a loop is looked at after others could take it",
        "ipcqueue/_ring/slot_receiver.py",
        'more = raw[place * self._size :] if raw else b"".join(ahead)',
        'more = raw[place * self._size :] if raw else b"".join((self.prefetched or [])[place:])',
        "ipcqueue/test_direct.py::test_what_a_loop_took_ahead_may_be_taken_while_it_is_put_back",
    ),
    Mutant(
        "True is a second",
        "fdpass/_numbers.py",
        "isinstance(given, str | bytes | bool) or of_numpy",
        "isinstance(given, str | bytes) or of_numpy",
        "fdpass/test_numbers.py::test_what_is_no_time_is_told_what_is",
    ),
    Mutant(
        "connecting tells the time that was left",
        "memenpsf/_interface.py",
        "prepare_to_connect(address, record, timeout, options)",
        "prepare_to_connect(address, record, 0.123, options)",
        "conformance/test_arguments.py::test_connecting_says_the_time_that_was_given",
    ),
    Mutant(
        "a loop drops what a signal handler raises while it takes ahead",
        "ipcqueue/core/python/iteration.c",
        "        if (!PyErr_ExceptionMatches(PyExc_MemoryError))\n            return not_stopped",
        "        if (!PyErr_ExceptionMatches(PyExc_Exception))\n            return not_stopped",
        "signals/test_strikes.py::test_a_stop_iteration_of_a_handler_ends_no_loop_in_silence",
    ),
    Mutant(
        "a control message is taken through a wrapper",
        "ipcqueue/_connection.py",
        '    def recv_ctrl_msg(self, timeout: Seconds = 0) -> bytes | None:\n        """',
        "    @tagged\n"
        '    def recv_ctrl_msg(self, timeout: Seconds = 0) -> bytes | None:\n        """',
        "memenpsf/test_origin.py::test_no_verb_that_takes_is_wrapped",
    ),
    Mutant(
        "a handler's exception passes for that of a bad record, of messages",
        "ipcqueue/_ring/receiver.py",
        "if mild and not suspect and type(second) is not type(error):",
        "if False:",
        "signals/test_strikes.py::test_a_handler_is_heard_though_the_record_is_bad_as_well",
    ),
    Mutant(
        "a handler's exception passes for that of a bad record, in C",
        "ipcqueue/core/python/taking.c",
        "(again && PyErr_Occurred() == type)",
        "again",
        "signals/test_strikes.py::test_a_handler_is_heard_though_the_record_is_bad_as_well",
    ),
    Mutant(
        "a handler's exception passes for that of a bad record, in batches",
        "ipcqueue/_ring/slot_receiver.py",
        "if type(own) is not type(error) and self._suspect is None:",
        "if False:",
        "signals/test_strikes.py::test_a_handler_is_heard_though_the_record_is_bad_as_well",
    ),
    Mutant(
        "the indices of a closed end freeze",
        "ipcqueue/_ring/end.py",
        "        return self._withdrawn if ring is None else ring\n",
        "        return ring\n",
        "conformance/test_ends.py::test_one_that_has_finished_sees_how_much_the_peer_takes[threads]",
    ),
    Mutant(
        "the messages of a batch are not counted",
        "ipcqueue/core/frames.c",
        "    s->published.messages += i;\n",
        "",
        "conformance/test_statistics.py::test_records_and_bytes_of_every_shape[queue-messages]",
    ),
    Mutant(
        "a count of messages believes the length that a peer states",
        "ipcqueue/core/frames.c",
        "        if (units > head - at)\n            break;\n",
        "",
        "conformance/test_statistics.py::test_a_frame_that_cannot_be_ends_the_count",
    ),
    Mutant(
        "what is shown is noted as the last indices",
        "ipcqueue/_ring/end.py",
        "        return self._read_indices()[1]\n",
        "        self._note_indices()\n        return self._last_indices\n",
        "conformance/test_shown.py::test_to_show_is_no_look_that_changes_anything",
    ),
    Mutant(
        "a forgotten listener keeps its file",
        "memenpsf/_listening.py",
        "            pending.close()\n",
        "            pass\n",
        "conformance/test_shown.py::test_a_forgotten_listener_is_named_and_leaves_nothing[threads]",
    ),
    Mutant(
        "a name of another library is there after all",
        "ipcqueue/_guesses.py",
        '        raise AttributeError(f"{kind!r} has no {self._name!r}: {self._advice}")\n',
        '        raise TypeError(f"{kind!r} has no {self._name!r}: {self._advice}")\n',
        "conformance/test_words.py::test_a_name_of_another_library_says_which_it_has_here",
    ),
    Mutant(
        "what a client does is printed where nobody configures logging",
        "memenpsf/_log.py",
        "of_clients.addHandler(logging.NullHandler())\n",
        "",
        "conformance/test_logging.py::test_it_is_quiet_by_default",
    ),
    Mutant(
        "a closed connection keeps the memory of its rings",
        "ipcqueue/_link/endpoint.py",
        "                ring.let_go()\n",
        "                pass\n",
        "ipcqueue/test_endpoint.py::TestClose::test_everything_is_closed_at_once_and_for_good",
    ),
    Mutant(
        "a capacity that no file can hold is accepted",
        "ipcqueue/_ring/segment.py",
        "    if capacity > most:",
        "    if False:",
        "conformance/test_arguments.py::test_what_an_option_cannot_be_is_told_before_anything_is_opened[listen-capacity]",
    ),
    Mutant(
        "the unit of a time is not told",
        "ipcqueue/_records/layout.py",
        'unit = _time_unit(dtype, where) if kind in "mM" else ""',
        'unit = ""',
        "conformance/test_layouts.py::test_times_of_another_unit_are_refused",
    ),
    Mutant(
        "times of several units are one run",
        "ipcqueue/_records/layout.py",
        "run[1:5] == last[1:5]",
        "run[1:4] == last[1:4]",
        "ipcqueue/test_record.py::test_different_layouts_have_different_fingerprints",
    ),
    Mutant(
        "a unit is told as it is spelt",
        "ipcqueue/_records/layout.py",
        "    while (more := _TIME_UNITS[unit]) and count % more == 0:\n",
        "    while (more := _TIME_UNITS[unit]) and count % more == 0 and not more:\n",
        "conformance/test_layouts.py::test_times_of_one_unit_meet_however_it_is_spelt",
    ),
    Mutant(
        "a time without a unit counts in that of its field",
        "ipcqueue/_records/arrays.py",
        'unit == "generic"',
        'unit == "?"',
        "ipcqueue/test_record.py::test_a_time_is_converted_to_another_unit_if_nothing_is_lost",
    ),
    Mutant(
        "a year is 365.2425 days",
        "ipcqueue/_records/arrays.py",
        "(unit in months) != (expected in months)",
        "False",
        "ipcqueue/test_record.py::test_a_time_is_converted_to_another_unit_if_nothing_is_lost",
    ),
    Mutant(
        "the peer's first difference is at the beginning of its run",
        "ipcqueue/_records/difference.py",
        "offset, left = self.offset + number * self.itemsize, self.number - number",
        "offset, left = self.offset, self.number - number",
        "ipcqueue/test_difference.py::test_the_first_difference_is_said_with_what_both_sides_have_there",
    ),
    Mutant(
        "where words are cut a difference is made up",
        "ipcqueue/_records/difference.py",
        "    if cut or (",
        "    if (",
        "ipcqueue/test_difference.py::test_nothing_is_said_where_nobody_knows",
    ),
    Mutant(
        "an end that outlives its modules complains",
        "ipcqueue/_link/endpoint.py",
        "                if not finalizing():\n                    raise\n                self",
        "                if True:\n                    raise\n                self",
        "reliability/test_exit.py::test_ends_that_outlive_their_modules_are_silent",
    ),
    Mutant(
        "a number is a truth",
        "ipcqueue/core/python/truths.c",
        "truth = value == 0 || value == 1 ? (int)value : -1;",
        "truth = value >= 0;",
        "conformance/test_truths.py::test_nothing_else_is_sent_for_its_truth",
    ),
    Mutant(
        "struct asks a value for its truth",
        "ipcqueue/_records/structs.py",
        "data = pack(*checked_truths(record, truths, names)) if truths else pack(*record)",
        "data = pack(*record)",
        "conformance/test_truths.py::test_nothing_else_is_sent_for_its_truth",
    ),
    Mutant(
        "struct asks the values of a batch for their truth",
        "ipcqueue/_records/structs.py",
        "        known = _are_truths(records, truths)  # first: struct would ask bool()\n",
        "        known = True\n",
        "conformance/test_truths.py::test_nothing_else_is_sent_for_its_truth",
    ),
    Mutant(
        "a byte for a bool is what the peer has written, in arrays",
        "ipcqueue/_records/arrays.py",
        "            normalise(data)\n",
        "",
        "conformance/test_truths.py::test_an_array_of_bools_is_normalised_and_belongs_to_the_receiver",
    ),
    Mutant(
        "a byte for a bool is what the peer has written, in structures",
        "ipcqueue/_records/classes.py",
        "            normalise(view)\n",
        "",
        "conformance/test_truths.py::test_any_other_byte_of_the_peers_is_true",
    ),
    Mutant(
        "bools are borrowed where the peer can write them",
        "ipcqueue/_records/arrays.py",
        "if normalise is None or not memory.readonly:",
        "if True:",
        "conformance/test_truths.py::test_bools_are_borrowed_as_a_copy_which_the_peer_cannot_write",
    ),
    Mutant(
        "eight bytes at a time are not made bools",
        "ipcqueue/core/python/truths.c",
        "eight = (((eight & low) + low) | eight) >> 7 & ones;",
        "eight = eight & ones;",
        "ipcqueue/test_corners.py::test_bools_of_any_length_are_normalised_and_nothing_else_is",
    ),
    Mutant(
        "a plain int is one of 32 bits",
        "ipcqueue/_records/fields.py",
        '_PLAIN_CODES = {int: "q", float: "d", bool: "?"}',
        '_PLAIN_CODES = {int: "i", float: "d", bool: "?"}',
        "conformance/test_fields.py::test_plain_ints_have_64_bits_and_none_is_lost",
    ),
    Mutant(
        "an error does not say which field",
        "ipcqueue/_records/structs.py",
        'f"{culprit(packer, record, names)}{error}"',
        'f"{error}"',
        "conformance/test_fields.py::test_plain_ints_have_64_bits_and_none_is_lost",
    ),
    Mutant(
        "None is sent",
        "ipcqueue/_records/messages.py",
        '        if record is None:\n            raise BadRecord(\n                "None',
        '        if False:\n            raise BadRecord(\n                "None',
        "conformance/test_messages.py::test_none_is_not_sent_as_it_says_that_nothing_came",
    ),
    Mutant(
        "names at other offsets are let through",
        "ipcqueue/_link/opening.py",
        "            check_fields(names, identity)\n",
        "",
        "conformance/test_layouts.py::test_fields_that_are_swapped_are_refused_by_their_names",
    ),
    Mutant(
        "a name that only one side states counts",
        "ipcqueue/_records/names.py",
        "if (there := places.get(name, offset)) != offset",
        "if (there := places.get(name, -1)) != offset",
        "conformance/test_layouts.py::test_names_that_only_one_side_states_count_for_nothing",
    ),
    Mutant(
        "of many names only the first are compared",
        "ipcqueue/_records/names.py",
        "own[1] == total[0] and own[2] != total[1]",
        "own[1] == total[0] and False",
        "conformance/test_layouts.py::test_of_more_than_64_names_all_are_compared_if_they_are_the_same",
    ),
    Mutant(
        "a peer may state names beyond its record",
        "ipcqueue/_records/names.py",
        "any(map(ge, offsets, [*offsets[1:], size]))",
        "any(map(ge, offsets, offsets[1:]))",
        "ipcqueue/test_names.py::test_a_table_that_nobody_makes_is_no_table",
    ),
    Mutant(
        "a peer may state more than its names",
        "ipcqueue/_records/names.py",
        "    if any(entries[shown:]) or (count <= MAX_NAMES and (total[0] or total[1])):\n",
        "    if count <= MAX_NAMES and (total[0] or total[1]):\n",
        "ipcqueue/test_names.py::test_a_table_that_nobody_makes_is_no_table",
    ),
    Mutant(
        "names that numpy makes up count",
        "ipcqueue/_records/names.py",
        'if all(name == f"f{number}" for number, name in enumerate(names)):',
        "if not names:",
        "ipcqueue/test_names.py::test_names_that_numpy_makes_up_are_none_and_others_like_them_are",
    ),
    Mutant(
        "a record in a record may be of any class",
        "ipcqueue/_records/fields.py",
        "        if not form.takes(record):\n            raise Misfit",
        "        if False:\n            raise Misfit",
        "conformance/test_fields.py::test_a_value_in_a_record_in_a_record_is_checked_and_named",
    ),
    Mutant(
        "the fields of a record in a record are stated without it",
        "ipcqueue/_records/fields.py",
        'stated=tuple((offset, f".{path}") for offset, path in field.stated),',
        'stated=tuple((offset, "") for offset, path in field.stated),',
        "conformance/test_fields.py::test_records_in_records_state_paths",
    ),
    Mutant(
        "a member of any enum is taken",
        "ipcqueue/_records/fields.py",
        "        if not isinstance(value, cls):\n            raise Misfit",
        "        if not isinstance(value, (cls, int, Enum)):\n            raise Misfit",
        "conformance/test_fields.py::test_what_is_no_member_of_the_enum_is_refused",
    ),
    Mutant(
        "text that is too long is cut",
        "ipcqueue/_records/fields.py",
        "        if len(data) > size:\n            raise Misfit",
        "        data = data[:size]\n        if False:\n            raise Misfit",
        "conformance/test_fields.py::test_text_that_would_not_arrive_whole_is_refused",
    ),
    Mutant(
        "text loses the null at its end",
        "ipcqueue/_records/fields.py",
        '        if data.endswith(b"\\0"):\n            raise Misfit',
        "        if False:\n            raise Misfit",
        "conformance/test_fields.py::test_text_that_would_not_arrive_whole_is_refused",
    ),
    Mutant(
        "a list may have any number of items",
        "ipcqueue/_records/fields.py",
        '        if len(values) != number:\n            raise Misfit(f"{len(values)} items where {number} are expected")\n        if plain:',
        "        if plain:",
        "conformance/test_fields.py::test_lists_that_do_not_fit_are_refused_and_the_item_is_named",
    ),
    Mutant(
        "the number that means None is sent as a value",
        "ipcqueue/_records/fields.py",
        "        if alike:\n            raise Misfit",
        "        if False:\n            raise Misfit",
        "conformance/test_fields.py::test_the_number_that_means_none_is_no_value",
    ),
    Mutant(
        "records of another dtype are converted by position",
        "ipcqueue/_records/arrays.py",
        "return (value[name] for name in names)",
        "return (value[name] for name in given)",
        "conformance/test_conversion.py::test_records_of_an_alike_dtype_are_converted",
    ),
    Mutant(
        "fields that the record has not are dropped",
        "ipcqueue/_records/arrays.py",
        "    odd = {*names} ^ {*given}\n",
        "    odd = {*names} - {*given}\n",
        "conformance/test_conversion.py::test_what_would_be_lost_is_refused_and_the_field_is_named",
    ),
]


def copy_tree(into: Path) -> Path:
    """Copy what is built and tested, with its extensions."""
    for name in COPIED:
        shutil.copytree(
            REPOSITORY / name, into / name, ignore=shutil.ignore_patterns("__pycache__", "build")
        )
    for name in COPIED_FILES:
        shutil.copy(REPOSITORY / name, into / name)
    return into


def build(tree: Path) -> None:
    """Compile the extensions of a copy, quickly rather than well."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--force"]
    environment = {**os.environ, "CFLAGS": "-O0 -Wno-unused"}
    subprocess.run(
        command, cwd=tree, env=environment, check=True, capture_output=True, timeout=DEADLINE
    )


def verdict(tree: Path, tests: list[str], **variables: str) -> tuple[int, str]:
    """Run tests on a copy; return pytest's status and output."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= variables
    done = subprocess.run(
        command,
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=DEADLINE,
    )
    return done.returncode, done.stdout


def judge(mutant: Mutant, original: Path, scratch: Path) -> str | None:
    """Return what is wrong: None if the test of this mutant kills it."""
    tree = scratch / mutant.name.replace(" ", "-")
    shutil.copytree(original, tree)
    try:
        file = tree / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            return f"the line to change stands {text.count(mutant.old)} times in {mutant.file}"
        file.write_text(text.replace(mutant.old, mutant.new))
        if file.suffix in {".c", ".h"}:
            build(tree)
        status, output = verdict(tree, [f"tests/{mutant.test}"], MEMENPSF_DEADLINE=HANGS)
    except subprocess.TimeoutExpired:
        return f"no verdict in {DEADLINE} s"
    except subprocess.CalledProcessError as error:
        return f"it does not compile: {error.stderr.decode()[-2000:]}"
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    if status == FAILED:
        return None
    return "it lives" if status == PASSED else f"pytest ended with {status}:\n{output[-2000:]}"


def main() -> int:
    """Judge the mutants named on the command line, or all."""
    number, parts = map(int, os.environ.get("MEMENPSF_MUTANTS", "0/1").split("/"))
    mine = [mutant for n, mutant in enumerate(MUTANTS) if n % parts == number % parts]
    wanted = [each for each in MUTANTS if each.name in sys.argv[1:]] if sys.argv[1:] else mine
    if not wanted:
        print("no mutant has this name; there are:", *(mutant.name for mutant in MUTANTS), sep="\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        original = copy_tree(Path(scratch) / "original")
        build(original)
        tests = sorted({f"tests/{mutant.test}" for mutant in wanted})
        lanes = os.cpu_count() or 1
        parts = [part for lane in range(lanes) if (part := tests[lane::lanes])]
        with ThreadPoolExecutor(max_workers=lanes) as pool:
            for status, output in pool.map(lambda part: verdict(original, part), parts):
                if status != PASSED:
                    print(output, "\nthe tests do not pass on what is to be mutated")
                    return 1

        def one(mutant: Mutant) -> bool:
            begin = time.monotonic()
            wrong = judge(mutant, original, Path(scratch))
            took = time.monotonic() - begin
            print(f"{wrong or 'killed'}: {mutant.name} ({mutant.test}, {took:.0f} s)", flush=True)
            return wrong is None

        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            killed = sum(pool.map(one, wanted))
    print(f"{killed} of {len(wanted)} mutants killed")
    return 0 if killed == len(wanted) else 1


if __name__ == "__main__":
    sys.exit(main())
