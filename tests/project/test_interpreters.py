"""Which interpreters of a process are refused, and in which words; and free-threaded builds.

Each test runs a program of its own: what goes wrong here ends a process.  `make interpreters` runs this
file with other versions of Python.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
CPYTHON = sys.implementation.name == "cpython"
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

only_cpython = pytest.mark.skipif(not CPYTHON, reason="other Pythons have no subinterpreters")
only_free_threaded = pytest.mark.skipif(
    not FREE_THREADED, reason="this Python is not a free-threaded build"
)

# in_another(kind, source): run it in a subinterpreter, which is ended; return what went wrong or "".
# "isolated" ones have a lock of their own since CPython 3.12; "legacy" ones share that of the process.
IN_ANOTHER = """
import sys
if sys.version_info >= (3, 13):
    import _interpreters
    def in_another(kind, source):
        other = _interpreters.create(kind)
        try:
            wrong = _interpreters.exec(other, source)
            return "" if wrong is None else wrong.formatted
        finally:
            _interpreters.destroy(other)
else:
    import _xxsubinterpreters
    def in_another(kind, source):
        other = _xxsubinterpreters.create(isolated=kind == "isolated")
        try:
            _xxsubinterpreters.run_string(other, source)
            return ""
        except _xxsubinterpreters.RunFailedError as error:
            return str(error)
        finally:
            _xxsubinterpreters.destroy(other)
"""

WORKS = """
import memenpsf
a, b = memenpsf.pair("<Q")
a.xmit((7,))
assert b.recv() == (7,)
a.close(), b.close()
"""

SUBINTERPRETER = "work in the main interpreter of a process only"
SWITCHED_OFF = "need the global interpreter lock, which is switched off"
SWITCHED_ON = "The global interpreter lock (GIL) has been enabled to load module 'ipcqueue._direct'"
# What a free-threaded build says of that, left out; others never say it.
SILENT = "-Wignore:The global interpreter lock:RuntimeWarning"


def run(source, *options, **environment):
    """Run a program; return how it ended, what it printed, and what it complained of."""
    leave_out = {"PYTHON_GIL", "PYTHONWARNINGS"}
    clean = {name: value for name, value in os.environ.items() if name not in leave_out}
    clean["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, *options, "-c", source]
    ended = subprocess.run(
        command, env=clean | environment, capture_output=True, text=True, timeout=50, check=False
    )
    return ended.returncode, ended.stdout, ended.stderr


kinds = pytest.mark.parametrize("kind", ["isolated", "legacy"])


@only_cpython
@kinds
@pytest.mark.parametrize("module", ["ipcqueue", "memenpsf"])
@pytest.mark.parametrize("first", ["", "import memenpsf\n"], ids=["alone", "after the main one"])
def test_a_subinterpreter_is_refused_in_words_and_the_main_one_works(kind, module, first):
    program = f"{IN_ANOTHER}{first}print(in_another({kind!r}, 'import {module}'))\n{WORKS}"
    code, out, err = run(program, SILENT)
    assert (code, err) == (0, "")
    assert "ImportError" in out
    assert SUBINTERPRETER in out


@pytest.mark.skipif(sys.version_info < (3, 12), reason="CPython checks since 3.12")
@pytest.mark.skipif(FREE_THREADED, reason="free-threaded builds cannot switch the checks off")
@only_cpython
def test_a_subinterpreter_whose_checks_are_switched_off_is_refused():
    off = "import _imp; _imp._override_multi_interp_extensions_check(-1); import ipcqueue"
    code, out, err = run(f"{IN_ANOTHER}print(in_another('isolated', {off!r}))\n{WORKS}", SILENT)
    assert (code, err) == (0, "")
    assert SUBINTERPRETER in out


@pytest.mark.skipif(sys.version_info < (3, 14), reason="concurrent.interpreters came in 3.14")
@only_cpython
def test_the_pool_of_interpreters_of_the_standard_library_is_refused():
    program = """
from concurrent.futures import InterpreterPoolExecutor
from importlib import import_module
with InterpreterPoolExecutor(1) as pool:
    try:
        pool.submit(import_module, "memenpsf").result()
    except ImportError as error:
        print(error)
"""
    code, out, err = run(program + WORKS, SILENT)
    assert (code, err) == (0, "")
    assert SUBINTERPRETER in out


@only_cpython
@kinds
def test_descriptors_and_regions_go_through_a_subinterpreter(kind):
    inside = """
import fdpass, os, socket
a, b = socket.socketpair()
reader, writer = os.pipe()
fdpass.send_fd(a, reader, b"?")
received = fdpass.recv_fd(b, b"?")
os.write(writer, b"!")
with received:
    assert os.read(received.fileno(), 1) == b"!"
with fdpass.MemoryRegion.create(4096) as region:
    region.buffer[0] = 33
for fd in (reader, writer):
    os.close(fd)
a.close(), b.close()
"""
    code, out, err = run(f"{IN_ANOTHER}print([in_another({kind!r}, {inside!r}) for _ in range(3)])")
    assert (code, out, err) == (0, "['', '', '']\n", "")


@only_cpython
@kinds
def test_no_thread_that_closes_a_file_aborts_the_process_when_its_interpreter_ends(kind):
    # A thread waits in close() for as long as a file of a stranger's own says: here, 1 s.
    inside = """
import fdpass, fdpass._untrusted, os, time
def close(fd, real=fdpass._untrusted._close):
    time.sleep(1)
    real(fd)
fdpass._untrusted._close = close
fds = fdpass.Fd.blank(1)
fdpass.Fd.own(fds, map(os.open, ("/",), (os.O_RDONLY,)))
fdpass.close_untrusted(fds)
"""
    code, out, err = run(f"{IN_ANOTHER}print(repr(in_another({kind!r}, {inside!r})))")
    assert (code, out, err) == (0, "''\n", "")


OTHER = "import sys; sys.implementation.name = 'pypy'\n"
REFUSED = "need CPython 3.11 or later, not pypy"
NOT_INSTALLED = "memenpsf needs CPython 3.11 or later and cannot be installed for pypy"


def test_another_python_is_refused_by_import():
    """As seen by Python: what it says that it is is taken for what it is."""
    program = """
for name in ("ipcqueue", "memenpsf", "ipcqueue.lowlevel"):
    try:
        __import__(name)
    except ImportError as error:
        print(error)
"""
    code, out, err = run(OTHER + program)
    assert (code, err) == (0, "")
    assert out.count(REFUSED) == 3


def test_another_python_is_refused_by_the_installer():
    program = f"{OTHER}import runpy; runpy.run_path({str(REPOSITORY / 'setup.py')!r})"
    code, _, err = run(program)
    assert code == 1
    assert err.startswith(NOT_INSTALLED)


@pytest.mark.skipif(shutil.which("pypy3") is None, reason="there is no PyPy here")
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import memenpsf", REFUSED),
        (f"exec(open({str(REPOSITORY / 'setup.py')!r}).read())", NOT_INSTALLED),
    ],
    ids=["import", "install"],
)
def test_pypy_is_refused(source, words):
    ended = subprocess.run(
        ["pypy3", "-c", source], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert words in ended.stderr


def test_without_the_lock_nothing_is_imported():
    """On any build, as seen by Python: what CPython says is taken for what is."""
    program = """
import sys
sys._is_gil_enabled = lambda: False
for name in ("ipcqueue", "memenpsf", "ipcqueue"):
    try:
        __import__(name)
    except ImportError as error:
        print(error)
import fdpass
"""
    code, out, err = run(program, "-W", "ignore")
    assert (code, err) == (0, "")
    assert out.count(SWITCHED_OFF) == 3


@only_free_threaded
@pytest.mark.parametrize("how", ["PYTHON_GIL=0", "-Xgil=0"])
def test_a_free_threaded_build_that_keeps_the_lock_off_is_refused(how):
    options = [how] if how.startswith("-") else []
    environment = {} if options else {"PYTHON_GIL": "0"}
    code, _, err = run("import memenpsf", *options, **environment)
    assert code == 1
    assert SWITCHED_OFF in err


@only_free_threaded
def test_a_free_threaded_build_switches_the_lock_on_with_one_warning_and_works():
    before = "import sys, fdpass\nassert not sys._is_gil_enabled()\nimport memenpsf\n"
    program = before + "assert sys._is_gil_enabled()\n" + WORKS
    code, _, err = run(program)
    assert code == 0, err
    assert err.count("RuntimeWarning") == 1
    assert SWITCHED_ON in err


@only_free_threaded
@pytest.mark.parametrize(
    "options",
    [
        ["-X", "gil=1", "-W", "error"],
        ["-W", "error", SILENT],
    ],
)
def test_where_warnings_are_errors_one_of_two_options_gets_over_it(options):
    assert run(WORKS, *options) == (0, "", "")
    code, _, err = run(WORKS, "-W", "error")
    assert code == 1
    assert SWITCHED_ON in err


def test_what_relies_on_the_lock_is_loaded_before_what_cffi_builds():
    """Which says that it needs no lock, so on its own it would leave it off."""
    program = """
import sys
class NotThere:
    def find_spec(self, name, path=None, target=None):
        if name == "ipcqueue._direct":
            raise ImportError(name)
sys.meta_path.insert(0, NotThere())
for name in ("ipcqueue", "memenpsf"):
    try:
        __import__(name)
    except ImportError as error:
        print(error)
assert not [name for name in sys.modules if name.startswith("ipcqueue._core")]
"""
    code, out, err = run(program, "-W", "ignore")
    assert (code, err) == (0, "")
    assert out.count("install them for this Python") == 2


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, id=file.name)
        for file in sorted((REPOSITORY / "ipcqueue" / "core" / "python").glob("*.c"))
        if "PyModuleDef definition" in file.read_text()
    ],
)
def test_every_extension_module_says_what_it_supports(file):
    (slots,) = re.findall(
        r"PyModuleDef_Slot module_slots\[\] = \{(.*?)\n\};", file.read_text(), re.DOTALL
    )
    assert "#ifdef Py_mod_gil" in slots
    assert "{Py_mod_gil, Py_MOD_GIL_USED}" in slots
    assert "#ifdef Py_mod_multiple_interpreters" in slots
    assert "{Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED}" in slots
