"""Run a fuzz target: `python tests/fuzz/fuzzing.py TARGET [--seconds N] [--seed N]`; see README.md.

Python targets run under atheris, the C target under clang's libFuzzer.  Both keep what they find in
build/fuzz/TARGET/corpus; `--keep` then makes the kept corpus (corpus/TARGET.txt) anew from it and
itself, with the fewest inputs that reach as much.
"""

import argparse
import base64
import importlib
import os
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from tests.reliability import campaign  # noqa: E402 (where it is was only just said)

PYTHON_TARGETS = "control", "handshake", "image"
TARGETS = (*PYTHON_TARGETS, "ring")
MAX_BYTES = 600  # of an input: longer ones only repeat
HOOKED = ("-include", str(HERE / "hooked_atomics.h"))
SANITIZED = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def kept(target):
    """Return the inputs of the kept corpus: those that reach most, and those that found a bug."""
    files = HERE / "corpus" / f"{target}.txt", HERE / "corpus" / f"{target}-bugs.txt"
    lines = [line for file in files if file.exists() for line in file.read_text().split()]
    return [base64.b64decode(line) for line in dict.fromkeys(lines)]


def compiled_ring(into, *flags, compiler="cc", core=campaign.CORE):
    """Compile the C target together with the C core in a directory; return the executable."""
    into.mkdir(parents=True, exist_ok=True)
    binary = into / "fuzz_ring"
    sources = [HERE / "fuzz_ring.c", *(core / source.name for source in campaign.SOURCES)]
    # Empty, as the sources define it, too: it must stand in front of what is included first.
    common = ["-std=c11", "-D_GNU_SOURCE=", "-Wall", "-Wextra", f"-I{core}", *HOOKED]
    command = [compiler, *common, *flags, "-o", binary, *sources, "-pthread"]
    subprocess.run(command, check=True, timeout=120)
    return binary


def unpacked(target, into):
    """Write the kept corpus into a directory of its own, one file for each input."""
    into.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(kept(target)):
        (into / f"kept-{number:04}").write_bytes(data)
    return into


def run_python(target, arguments):
    """Become libFuzzer around one of the Python targets."""
    import atheris

    # What is not closed warns when it is forgotten: an exception, for nothing_stays() in script.py.
    warnings.simplefilter("error")
    with atheris.instrument_imports(include=["ipcqueue", "fdpass"]):
        module = importlib.import_module(f"tests.fuzz.fuzz_{target}")
    atheris.Setup([sys.argv[0], *arguments], module.one)
    atheris.Fuzz()


def fuzzer(target, work):
    """Return the command that is libFuzzer with this target."""
    if target == "ring":
        found = os.environ.get("CLANG", "clang")
        return [compiled_ring(work, *SANITIZED, "-fsanitize=fuzzer", compiler=found)]
    # A file that can be run: to merge, libFuzzer starts itself again.
    script = work / "fuzzer"
    itself = shlex.join([sys.executable, str(Path(__file__).resolve()), "--inside", target])
    script.write_text(f'#!/bin/sh\nexec {itself} "$@"\n')
    script.chmod(0o755)
    return [script]


def keep(target, command, work, corpora):
    """Merge all that was found into the fewest inputs that reach as much, and keep these."""
    merged = work / "merged"
    subprocess.run(["rm", "-rf", merged], check=True)
    merged.mkdir()
    subprocess.run(
        [*command, "-set_cover_merge=1", f"-max_len={MAX_BYTES}", merged, *corpora], check=True
    )
    lines = sorted(base64.b64encode(path.read_bytes()).decode() for path in merged.iterdir())
    lines.sort(key=len)
    (HERE / "corpus" / f"{target}.txt").write_text("".join(f"{line}\n" for line in lines if line))
    print(f"{target}: {len(lines)} inputs are kept")


def main():
    if sys.argv[1:2] == ["--inside"]:
        target = sys.argv[2]
        sys.argv[:] = [str(ROOT / "build" / "fuzz" / target / "fuzzer"), *sys.argv[3:]]
        return run_python(target, sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=180)
    parser.add_argument("--seed", type=int, default=campaign.SEED)
    parser.add_argument("--keep", action="store_true", help="make the kept corpus anew, and end")
    parser.add_argument("inputs", nargs="*", help="run only these files, once each")
    options = parser.parse_args()
    target = options.target
    work = ROOT / "build" / "fuzz" / target
    corpus = work / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    command = fuzzer(target, work)
    corpora = [corpus, unpacked(target, work / "kept")]
    if options.keep:
        return keep(target, command, work, corpora)
    if options.inputs:
        return sys.exit(subprocess.run([*command, *options.inputs], check=False).returncode)
    seed = options.seed or 1  # 0 is any, for libFuzzer
    print(f"{target}: {options.seconds} s, seed {seed}", flush=True)
    before = time.monotonic()
    limits = [
        f"-max_total_time={options.seconds}",
        f"-max_len={MAX_BYTES}",
        "-timeout=20",
        "-len_control=0",
    ]
    how = [f"-seed={seed}", f"-artifact_prefix={work}/", "-print_final_stats=1", "-verbosity=1"]
    log = work / "log"
    with log.open("wb") as file:
        code = subprocess.run(
            [*command, *limits, *how, *corpora], check=False, stdout=file, stderr=file
        ).returncode
    report(target, log, time.monotonic() - before)
    if code:
        print(log.read_text(errors="replace")[-8000:])
        print(f"{target}: failed, with seed {seed}; to repeat the input that failed:")
        for path in sorted(work.glob("*-*[0-9a-f]")):
            if path.name.split("-")[0] in {"crash", "timeout", "oom", "leak"}:
                print(f"    {sys.executable} tests/fuzz/fuzzing.py {target} {path}")
    return sys.exit(bool(code))


def report(target, log, seconds):
    """Say how much was done."""
    lines = log.read_text(errors="replace").splitlines()
    reached = [line.split("cov: ")[1].split(" exec/s")[0] for line in lines if "cov: " in line]
    done = [line.rsplit(":", 1)[1].strip() for line in lines if "number_of_executed_units" in line]
    print(
        f"{target}: {done[-1] if done else '?'} inputs in {seconds:.0f} s, "
        f"coverage {reached[-1] if reached else '?'}",
        flush=True,
    )


if __name__ == "__main__":
    main()
