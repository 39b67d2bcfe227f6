"""The wake-up protocol in every interleaving, by Spin; `tests/model/README.md` says what is modelled.

A configuration must come through whole, and each mutant, which leaves one rule out, must fail
in its own way: a model that cannot fail proves nothing.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.deadline(180)  # seconds here; a loaded machine may need more

MODELS = Path(__file__).parent
REQUIRE = "MEMENPSF_REQUIRE_TOOLS"

DEADLOCK = "invalid end state"
CYCLE = "non-progress cycle"
WRONG_RECORD = "assertion violated (value==(r+1))"
RECORDS_LEFT = "assertion violated (r=="
END_TAKEN_FOR_DEATH = "assertion violated (closed||kill_sender)"
LIVE_TAKEN_FOR_DEAD = "assertion violated (gone||closed)"
ORDERLY_END_FORGOTTEN = "assertion violated ((ended==1)||"
MESSAGES_LOST = "assertion violated (messages==messages_sent)"
DESCRIPTORS_LOST = "assertion violated (attached>0)"
NEVER_SEEN = "acceptance cycle"
TOO_MANY_BELLS = "assertion violated (rings<=((e+1)/2))"

CONFIGURATIONS = [
    "wake",
    "wake CAPACITY=2 BELLS=2",
    "wake WEAK",
    "wake WEAK CAPACITY=2 RECORDS=4",
    "wake SPURIOUS=1 RECORDS=2",
    "wake SENDER_DIES RECORDS=2",
    "wake SENDER_DIES CAPACITY=2 WEAK",
    "wake RECEIVER_DIES RECORDS=2",
    "wake RECEIVER_DIES CAPACITY=2",
    "wake EOF_WITHHELD CAPACITY=2",
    "wake NO_BELL_CLOSE CAPACITY=2",
    "waiters",
    "waiters PAIR",
    "waiters ECHO",
    "waiters ECHO BELLS=2",
    "waiters PAIR ONE_SECTION",
    "waiters ECHO ONE_SECTION",
    "waiters PEER_ENDS QUITTER ONE_SECTION",
    "waiters PAIR ONE_SECTION TWO_STEPS",
    "waiters ECHO ONE_SECTION TWO_STEPS",
    "waiters PEER_ENDS QUITTER ONE_SECTION TWO_STEPS",
    "waiters PAIR TRYLOCK CAPACITY=2",
    "waiters PAIR QUITTER",
    "waiters PEER_ENDS QUITTER",
    "waiters PAIR SNOOP",
    "death",
    "death ATTACHED CAPACITY=1 MESSAGES=2 ROOM=2",
    "death ATTACHED ORDERLY",
    "death ATTACHED OTHER_READS",
]

# No label in the models counts as progress, so here any cycle at all is an error.
# Runs that are all finite and all end well deliver everything, without an assumption of fairness.
FINITE = [
    "wake CAPACITY=2",
    "wake SENDER_DIES RECORDS=2",
    "wake WEAK SPURIOUS=1 RECORDS=1",
    "waiters PAIR",
    "waiters PEER_ENDS",
    "waiters PAIR ONE_SECTION TWO_STEPS",
    "death ATTACHED",
    "death OTHER_READS RECORDS=1",
]

# With weak fairness: whoever can go on for ever does go on.
LIVE = [
    "death LIVE",
    "death LIVE FLOOD RECORDS=1 MESSAGES=0 ROOM=1",
]

MUTANTS = [
    ("wake NO_FENCE_PUBLISH", DEADLOCK),
    ("wake NO_FENCE_FREE", DEADLOCK),
    ("wake NO_FENCE_WAIT_RECORDS", DEADLOCK),
    ("wake NO_FENCE_WAIT_SPACE", DEADLOCK),
    ("wake NO_FENCE_CLOSE", END_TAKEN_FOR_DEATH),
    ("wake NO_RECHECK_RECORDS", DEADLOCK),
    ("wake NO_RECHECK_SPACE", DEADLOCK),
    ("wake DRAIN_BEFORE_POLL", DEADLOCK),
    ("wake BELL_LOST", DEADLOCK),
    ("wake INTERRUPTED", DEADLOCK),
    ("wake RUNG_STICKY", DEADLOCK),
    ("wake EPOCH_REUSED", DEADLOCK),
    ("wake RING_ALWAYS CAPACITY=2", TOO_MANY_BELLS),
    ("wake PUBLISH_BEFORE_WRITE", WRONG_RECORD),
    ("wake FREE_BEFORE_READ", WRONG_RECORD),
    ("wake RELAXED_LOAD", WRONG_RECORD),
    ("wake RELAXED_HEAD WEAK", WRONG_RECORD),
    ("wake HEAD_BEFORE_CLOSED", RECORDS_LEFT),
    ("wake END_ON_CLOSED", RECORDS_LEFT),
    ("wake END_ON_EOF SENDER_DIES", RECORDS_LEFT),
    # A side that sends no more, and goes on receiving, does not end the socket.
    ("wake NO_BELL_CLOSE EOF_WITHHELD", DEADLOCK),
    ("wake NO_FENCE_CLOSE EOF_WITHHELD", DEADLOCK),
    ("wake NO_RECHECK_CLOSED EOF_WITHHELD", DEADLOCK),
    ("waiters NO_TICKET PAIR", DEADLOCK),
    ("waiters READER_IGNORES_TICKET PAIR", DEADLOCK),
    ("waiters FOLLOWER_IGNORES_TICKET ECHO", DEADLOCK),
    ("waiters TICKET_LATE PAIR", DEADLOCK),
    ("waiters GENERATION_EARLY PAIR", DEADLOCK),
    ("waiters NO_HANDOVER PAIR", DEADLOCK),
    ("waiters RELEASE_ONE ECHO", DEADLOCK),
    ("waiters SWALLOW ECHO", DEADLOCK),
    ("waiters OPCODE_DISPATCH ECHO", DEADLOCK),
    ("waiters ARM_KEEPS_NUMBER PAIR", DEADLOCK),
    ("waiters LEAVE_MAKES_EVEN PAIR", DEADLOCK),
    ("waiters LEAVE_MAKES_EVEN PAIR ONE_SECTION", DEADLOCK),
    ("waiters ARM_KEEPS_NUMBER PAIR ONE_SECTION", DEADLOCK),
    ("waiters NO_HANDOVER PAIR ONE_SECTION", DEADLOCK),
    ("waiters CHOICE_LATE PAIR ONE_SECTION TWO_STEPS", DEADLOCK),
    ("waiters NO_HANDOVER PAIR ONE_SECTION TWO_STEPS", DEADLOCK),
    ("waiters NO_RECHECK PAIR ONE_SECTION TWO_STEPS", DEADLOCK),
    ("waiters NO_RECHECK PAIR", DEADLOCK),
    ("waiters BUSY_IS_EMPTY PAIR TRYLOCK CAPACITY=2", DEADLOCK),
    ("waiters QUITTER_KEEPS_QUIET PAIR QUITTER", DEADLOCK),
    ("waiters DRAIN_UNASKED PAIR SNOOP", DEADLOCK),
    ("death NO_PIDFD", DEADLOCK),
    ("death NOTE_BEFORE_DRAIN", MESSAGES_LOST),
    ("death NOTE_BEFORE_DRAIN ENDED_READS_NOTHING ATTACHED", DESCRIPTORS_LOST),
    ("death DRAIN_ONCE", MESSAGES_LOST),
    ("death DRAIN_ONCE ENDED_READS_NOTHING ATTACHED", DESCRIPTORS_LOST),
    ("death NO_LAST_LOOK", RECORDS_LEFT),
    ("death OVER_AFTER_LOOK OTHER_READS", RECORDS_LEFT),
    ("death CLOSED_EARLY", ORDERLY_END_FORGOTTEN),
    ("death WRONG_PROCESS", LIVE_TAKEN_FOR_DEAD),
    ("death LIVE FLOOD DRAIN_UNTIL_EMPTY RECORDS=1 MESSAGES=0 ROOM=1", NEVER_SEEN),
]

ENDLESS = ["wake NO_DRAIN RECORDS=2", "death DEATH_NOT_NOTED"]

ALL = [*CONFIGURATIONS, *FINITE, *LIVE, *(case for case, _ in MUTANTS), *ENDLESS]

# What a configuration may leave unreached: choices that its flags rule out.
OUT_OF_PLAY = re.compile(r'"(-end-|\(kill_\w+\)|spurious = .*|quits = 1|\w+\?_,_)"')


@pytest.fixture(scope="module")
def compiler() -> str:
    found = next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None)
    missing = [name for name, here in (("spin", shutil.which("spin")), ("cc", found)) if not here]
    if missing:
        reason = f"the model checker needs {' and '.join(missing)} (Debian: spin, gcc)"
        if os.environ.get(REQUIRE) == "1":
            pytest.fail(f"{REQUIRE} is 1, but {reason}")
        pytest.skip(reason)
    return found


def call(where: Path, *command: str, timeout: float) -> str:
    done = subprocess.run(
        command,
        cwd=where,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    # pan's own status says nothing dependable; a signal does.
    assert done.returncode >= 0, f"{command} died of signal {-done.returncode}:\n{done.stdout}"
    return done.stdout


def check(where: Path, compiler: str, case: str, *build: str) -> str:
    """Build the checker for one case ("model FLAG FLAG=1") and return its report."""
    model, *flags = case.split()
    shutil.copy(MODELS / f"{model}.pml", where)
    preprocessor = f"-P{compiler} -E -x c"
    defines = [f"-D{flag}" for flag in flags]
    complaints = call(where, "spin", preprocessor, "-a", *defines, f"{model}.pml", timeout=20)
    assert not re.sub(r"^ltl .*\n", "", complaints), complaints
    complaints = call(where, compiler, "-w", *build, "-o", "pan", "pan.c", timeout=40)
    assert not complaints, complaints
    options = ["-l"] if "-DNP" in build else ["-a", "-f"] if "-DNFAIR=3" in build else []
    return call(where, "./pan", "-m50000", "-w20", *options, timeout=110)


def errors(report: str) -> int:
    found = re.search(r"errors: (\d+)$", report, re.MULTILINE)
    assert found, f"the checker did not finish:\n{report}"
    assert "max search depth too small" not in report, report
    return int(found[1])


def assert_whole_and_clean(report: str) -> None:
    assert errors(report) == 0, report
    assert "Search not completed" not in report, report
    assert "assertion violations\t+" in report, report


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_nobody_sleeps_for_ever_and_no_record_is_wrong(case, compiler, tmp_path):
    report = check(tmp_path, compiler, case, "-Og", "-DSAFETY", "-DMEMLIM=2048")
    assert_whole_and_clean(report)
    assert "invalid end states\t+" in report, report
    unreached = re.findall(r'state \d+, (".*")$', report, re.MULTILINE)
    assert [line for line in unreached if not OUT_OF_PLAY.fullmatch(line)] == []


@pytest.mark.parametrize("case", FINITE)
def test_every_run_is_finite(case, compiler, tmp_path):
    report = check(tmp_path, compiler, case, "-Og", "-DNP", "-DNOFAIR", "-DMEMLIM=2048")
    assert_whole_and_clean(report)
    assert "(:np_:)" in report, report


@pytest.mark.parametrize("case", LIVE)
def test_a_death_is_always_seen(case, compiler, tmp_path):
    report = check(tmp_path, compiler, case, "-Og", "-DNFAIR=3", "-DMEMLIM=2048")
    assert_whole_and_clean(report)
    assert "acceptance   cycles \t+" in report, report


@pytest.mark.parametrize(("case", "failure"), MUTANTS)
def test_the_checker_catches_the_mutant(case, failure, compiler, tmp_path):
    kind = "-DNFAIR=3" if failure == NEVER_SEEN else "-DSAFETY"
    report = check(tmp_path, compiler, case, "-O0", kind, "-DMEMLIM=2048")
    assert errors(report) >= 1, report
    assert f"pan:1: {failure}" in report, report


@pytest.mark.parametrize("case", ENDLESS)
def test_the_checker_catches_a_run_without_end(case, compiler, tmp_path):
    report = check(tmp_path, compiler, case, "-O0", "-DNP", "-DNOFAIR", "-DMEMLIM=2048")
    assert errors(report) >= 1, report
    assert f"pan:1: {CYCLE}" in report, report


def test_every_flag_of_a_case_stands_in_its_model():
    """A misspelt flag would check the plain model under another name."""
    for case in ALL:
        model, *flags = case.split()
        text = (MODELS / f"{model}.pml").read_text()
        for flag in flags:
            name = flag.partition("=")[0]
            assert re.search(rf"(ifn?def |defined\(){name}\b", text), (case, name)


def test_every_switch_of_a_model_is_tried():
    """A switch that no case turns on is a rule that nobody tests."""
    for path in MODELS.glob("*.pml"):
        cases = [case.split()[1:] for case in ALL if case.split()[0] == path.stem]
        used = {flag.partition("=")[0] for flags in cases for flag in flags}
        switches = set(re.findall(r"(?:ifn?def |defined\()(\w+)", path.read_text()))
        assert switches - used == set(), path.name
