"""The one arrow between the layers: memenpsf -> ipcqueue -> fdpass -> the standard library."""

from __future__ import annotations

import ast
import functools
import gc
import importlib
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
BELOW = {"fdpass": None, "ipcqueue": "fdpass", "memenpsf": "ipcqueue"}
# What else a module may import; the third parties of the whole project stand in this table, but for
# Trio, which only what is called trio imports, be it a file or a folder.
THIRD_PARTIES = {
    "fdpass/_interpreter.py": {"_interpreters", "_xxsubinterpreters"},  # CPython's own: by version
    "ipcqueue/_build.py": {"cffi"},
    "ipcqueue/_types.py": {"typing_extensions"},  # for type checkers alone, which bring it along
}
MODULES = sorted(
    str(path.relative_to(REPOSITORY))
    for package in BELOW
    for path in (REPOSITORY / package).rglob("*.py")
)


@pytest.fixture(scope="module", autouse=True)
def _everything_parsed_once():
    """And out of the sight of gc.collect(), which is called after each test."""
    for module in MODULES:
        parsed(module)
    gc.freeze()
    yield
    parsed.cache_clear()
    gc.unfreeze()


class Import(NamedTuple):
    module: str  # absolute, as it would stand after `import`
    names: tuple[str, ...]  # what `from` takes out of it; empty for a plain import
    line: int


def package_of(module: str) -> str:
    return Path(module).parts[0]


def is_of_trio(module: str) -> bool:
    return "trio" in Path(module).with_suffix("").parts


@functools.cache
def parsed(module: str) -> ast.Module:
    return ast.parse((REPOSITORY / module).read_text(), module)


def imports(module: str) -> list[Import]:
    found = []
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, (), node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                folders = Path(module).parts[:-1]
                assert node.level <= len(folders), (
                    f"{module}:{node.lineno} climbs out of its package"
                )
                above = folders[: len(folders) + 1 - node.level]
                origin = ".".join(filter(None, (*above, origin)))
            found.append(Import(origin, tuple(a.name for a in node.names), node.lineno))
    return found


def loaded_by(statements: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after these statements."""
    # Without site, whose hooks for editable installs load modules of their own.
    command = [sys.executable, "-S", "-c", f"import sys; {statements}; print(*sys.modules)"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return set(run.stdout.split())


def test_the_three_packages_are_found_here():
    assert {package_of(module) for module in MODULES} == set(BELOW)
    assert len(MODULES) > 15
    for module, third_parties in THIRD_PARTIES.items():
        assert third_parties <= {i.module.split(".")[0] for i in imports(module)}
    for door in ("fdpass/trio.py", "memenpsf/trio/__init__.py"):
        assert door in MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_its_package_the_one_below_and_the_standard_library(module):
    package = package_of(module)
    allowed = {package, BELOW[package], *THIRD_PARTIES.get(module, ())} | sys.stdlib_module_names
    if is_of_trio(module):
        allowed.add("trio")
    wrong = [i for i in imports(module) if i.module.split(".")[0] not in allowed]
    assert wrong == []


@pytest.mark.parametrize("module", MODULES)
def test_nothing_dynamic_gets_around_the_imports(module):
    for node in ast.walk(parsed(module)):
        name = getattr(node, "id", getattr(node, "attr", None))
        assert name not in {"__import__", "import_module"}, node.lineno


@pytest.mark.parametrize("module", MODULES)
def test_only_public_names_of_the_layer_below_are_used(module):
    below = BELOW[package_of(module)]
    if below is None:
        return
    public = {below: {*importlib.import_module(below).__all__, "__file__", "__version__"}}
    lowlevel = f"{below}.lowlevel"
    if (REPOSITORY / below / "lowlevel.py").exists():
        public[lowlevel] = set(importlib.import_module(lowlevel).__all__)
    for found in imports(module):
        if found.module.split(".")[0] == below:
            assert found.module in public, f"{module}:{found.line} imports {found.module}"
            assert found.names or found.module == below, f"{module}:{found.line} takes no names"
            assert set(found.names) <= public[found.module], f"{module}:{found.line}"
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == below:
            assert node.attr in public[below], f"{module}:{node.lineno} uses {below}.{node.attr}"


@pytest.mark.parametrize("package", ["fdpass", "ipcqueue"])
def test_what_is_in_lowlevel_is_for_doors_only(package):
    lowlevel = importlib.import_module(f"{package}.lowlevel")
    offered = {
        alias.name
        for node in ast.walk(parsed(f"{package}/lowlevel.py"))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert offered == {*lowlevel.__all__}
    assert offered & {*importlib.import_module(package).__all__} == set()


def test_only_the_ends_of_the_rings_know_the_c_core():
    def knows_it(module):
        return any(i.module == "ipcqueue._core" or "_core" in i.names for i in imports(module))

    knowing = [module for module in MODULES if knows_it(module)]
    assert [m for m in knowing if not m.startswith("ipcqueue/_ring/")] == []


CORE = REPOSITORY / "ipcqueue" / "core"
DECLARED = re.findall(r"^\w[\w ]*[ *](ipcq_\w+)\(", (CORE / "ring.h").read_text(), re.MULTILINE)
EXTENSION = "ipcqueue/core/python"
# The functions of the core that have more callers than one, and why.
SEVERAL_CALLERS = {
    # Arithmetic without a state, so no two could disagree; Python needs it where it prepares a frame.
    "ipcq_frame_extent": {"ipcqueue/_ring/frame.py", EXTENSION},
    # What the ends have in common, and what only frames look at before they choose a region.
    "ipcq_sender_indices": {"ipcqueue/_ring/sender.py", "ipcqueue/_ring/frame_sender.py"},
    # A place in the ring: for a loan of either shape, and for a large message that is copied there.
    # Threads look in C, and tasks between the turns of an event loop: both learn whether it pays.
    "ipcq_patience": {EXTENSION, "ipcqueue/_ring/receiver.py"},
    "ipcq_learn": {EXTENSION, "ipcqueue/_ring/receiver.py"},
    "ipcq_reserve": {EXTENSION, "ipcqueue/_ring/frame_sender.py"},
    "ipcq_frame_commit": {EXTENSION, "ipcqueue/_ring/frame_sender.py"},
}


@functools.cache
def callers_of_the_core():
    """Return for each function of ring.h who calls it: modules of Python, or the extension."""
    callers = {name: set() for name in DECLARED}
    for module in MODULES:
        for node in ast.walk(parsed(module)):
            if isinstance(node, ast.Attribute) and node.attr.startswith("ipcq_"):
                callers[node.attr].add(module)
    for path in (CORE / "python").glob("*.[ch]"):
        for name in re.findall(r"\b(ipcq_\w+)\(", path.read_text()):
            callers[name].add(EXTENSION)
    return callers


def test_the_functions_of_the_core_are_found():
    assert len(DECLARED) == len({*DECLARED}) > 45
    assert {"ipcq_push", "ipcq_read_identity", "ipcq_copy", "ipcq_frame_look"} <= {*DECLARED}
    assert {*SEVERAL_CALLERS} <= {*DECLARED}


@pytest.mark.parametrize("function", DECLARED)
def test_a_function_of_the_core_has_one_caller(function):
    """A second way to do the same would have to be kept the same, and be proved again."""
    callers = callers_of_the_core()[function]
    if function in SEVERAL_CALLERS:
        assert callers == SEVERAL_CALLERS[function]
    else:
        assert len(callers) == 1, callers


# The floors of ipcqueue, from below: a module imports nothing of a floor above its own.
FLOORS = [
    (
        "_foundation",
        "_core",
        "_waiting",
        "_direct",
        "_packer",
        "_interpreter",
        "_errors",
        "_guesses",
        "_leaving",
        "_origin",
        "_types",
    ),
    ("_records",),
    ("_ring",),
    ("_link",),
    ("_threads",),
    ("_connection", "_verbs"),
    ("_queue",),
    ("lowlevel",),
    ("__init__",),
]


def modules_imported(module):
    """The modules of its own package that a module imports, also for type checkers alone."""
    for found in imports(module):
        for name in ("", *(f".{each}" for each in found.names)):
            path = (found.module + name).replace(".", "/")
            for candidate in (f"{path}.py", f"{path}/__init__.py"):
                if candidate in MODULES and candidate != module:
                    yield candidate


def floor_of(module):
    name = Path(module).parts[1].removesuffix(".py")
    return next(number for number, floor in enumerate(FLOORS) if name in floor)


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("ipcqueue/")])
def test_a_module_imports_nothing_from_a_floor_above(module):
    if module == "ipcqueue/_build.py":  # runs before there is a package
        return
    below = [m for m in modules_imported(module) if m != "ipcqueue/__init__.py"]
    assert [m for m in below if m.startswith("ipcqueue/") and floor_of(m) > floor_of(module)] == []


def test_no_two_modules_import_each_other():
    arrows = {module: {*modules_imported(module)} for module in MODULES}
    roots = {f"{package}/__init__.py" for package in BELOW}
    rest = {m: a - roots for m, a in arrows.items() if m not in roots}
    found = True
    while found:  # what imports nothing that is left is in no circle
        found = [m for m, a in rest.items() if not a & rest.keys()]
        for module in found:
            del rest[module]
    assert rest == {}


@pytest.mark.parametrize("package", BELOW)
def test_importing_a_package_loads_nothing_it_does_not_need(package):
    loaded = loaded_by(f"import {package}")
    above = set(BELOW) - {package, BELOW[package], "fdpass"}
    unwanted = {"trio", "numpy", "ctypes", "cffi", "asyncio", "multiprocessing", "subprocess"}
    assert {package} <= loaded
    assert (above | unwanted) & {name.split(".")[0] for name in loaded} == set()


@pytest.mark.parametrize("package", BELOW)
def test_importing_a_package_loads_nothing_that_is_slow_to_import(package):
    slow = {
        *("dataclasses", "datetime", "decimal", "hashlib", "inspect", "json", "logging", "pathlib"),
        *("pickle", "queue", "random", "secrets", "shutil", "signal", "ssl", "string", "tempfile"),
        *("tokenize", "traceback", "uuid"),
    }
    assert slow & loaded_by(f"import {package}") == set()


@pytest.mark.parametrize("spec", ["bytes", "24", "'<QdI'"])
def test_the_first_record_loads_nothing_that_is_slow_to_import(spec):
    loaded = loaded_by(f"import memenpsf; memenpsf.pair({spec})")
    assert {"hashlib", "dataclasses", "inspect", "logging", "pickle"} & loaded == set()


FRAMES = {"ipcqueue._ring.frame_sender", "ipcqueue._ring.frame_receiver", "ipcqueue._ring.outside"}
SLOTS = {"ipcqueue._ring.slot_sender", "ipcqueue._ring.slot_receiver"}


@pytest.mark.parametrize(
    ("statement", "expected"),
    [("pass", set()), ("memenpsf.pair(8)", SLOTS), ("memenpsf.pair(bytes)", FRAMES)],
)
def test_the_ends_of_a_ring_are_loaded_by_the_first_terms_of_their_shape(statement, expected):
    loaded = loaded_by(f"import memenpsf; {statement}")
    assert loaded & (FRAMES | SLOTS) == expected
    assert "ipcqueue._records.arrays" not in loaded


# Where annotations are text, a NamedTuple or TypedDict compiles each of them when it is made.
COMPILES_ANNOTATIONS = {"ipcqueue/_link/waiters.py": "its Wait names Wire, which imports it"}


def test_importing_compiles_no_annotations():
    loaded = loaded_by("import memenpsf")
    found = set()
    for module in MODULES:
        if str(Path(module).with_suffix("")).replace("/", ".") not in loaded:
            continue
        body = parsed(module).body
        bases = {
            getattr(base, "id", None)
            for node in body
            if isinstance(node, ast.ClassDef)
            for base in node.bases
        }
        text = any(
            isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in body
        )
        if text and bases & {"NamedTuple", "TypedDict"}:
            found.add(module)
    assert found == {*COMPILES_ANNOTATIONS}


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("ipcqueue/")])
def test_what_only_type_checkers_read_is_not_made_at_run_time(module):
    """A Protocol takes longer to make than any other class."""
    made = [
        node.name
        for node in parsed(module).body
        if isinstance(node, ast.ClassDef)
        and "Protocol" in {getattr(b, "id", 0) for b in node.bases}
    ]
    assert made == []


@pytest.mark.parametrize(
    ("package", "name", "module"),
    [
        ("fdpass", "MemoryRegistry", "fdpass._registry"),
        ("memenpsf", "listen", "memenpsf._listener"),
        ("memenpsf", "Ended", "memenpsf._loop"),
        ("memenpsf", "serve", "memenpsf._serve"),
        ("memenpsf", "pipe", "memenpsf._pipe"),
        ("memenpsf", "deal", "memenpsf._dealing"),
        ("memenpsf", "wait", "memenpsf._wait"),
        ("memenpsf", "ReceiverSet", "memenpsf._receiver_set"),
    ],
)
def test_what_not_every_program_uses_is_imported_on_first_use(package, name, module):
    assert module not in loaded_by(f"import memenpsf, {package}; assert {name!r} in dir({package})")
    assert module in loaded_by(f"import {package}; {package}.{name}")
    assert module in loaded_by(f"from {package} import {name}")


@pytest.mark.parametrize("package", BELOW)
def test_a_package_has_no_other_names(package):
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        importlib.import_module(package).nothing  # noqa: B018 (it raises)


@pytest.mark.parametrize("package", BELOW)
def test_all_names_exactly_what_a_package_offers(package):
    module = importlib.import_module(package)
    assert len(module.__all__) == len(set(module.__all__))
    tree = parsed(f"{package}/__init__.py")
    imported = [n for i in ast.walk(tree) if isinstance(i, ast.ImportFrom) for n in i.names]
    offered = {alias.asname or alias.name for alias in imported}
    assert {name for name in offered if not name.startswith("_")} == set(module.__all__)
    for name in module.__all__:
        getattr(module, name)


def test_all_of_the_trio_door_is_what_it_defines_and_how_a_loop_ends():
    import memenpsf.trio

    offered = {
        name
        for name, thing in vars(memenpsf.trio).items()
        if getattr(thing, "__module__", None) == "memenpsf.trio" and not name.startswith("_")
    }
    assert set(memenpsf.trio.__all__) == {*offered, "Ended"}


def test_the_doors_for_tasks_offer_the_same_but_for_the_words_of_errors():
    import memenpsf.asyncio
    import memenpsf.trio

    errors = {name for name in memenpsf.trio.__all__ if hasattr(memenpsf, name)} - {
        *memenpsf.asyncio.__all__
    }
    assert {*memenpsf.asyncio.__all__} | errors == {*memenpsf.trio.__all__}
    assert all(issubclass(getattr(memenpsf, name), Exception) for name in errors)


def test_memenpsf_offers_every_error_of_the_queue():
    import ipcqueue
    import memenpsf

    for name in ipcqueue.__all__:
        thing = getattr(ipcqueue, name)
        if isinstance(thing, type) and issubclass(thing, Exception):
            assert getattr(memenpsf, name) is thing


@pytest.mark.parametrize("package", BELOW)
def test_type_checkers_are_told_that_a_package_is_typed(package):
    assert (REPOSITORY / package / "py.typed").is_file()


@pytest.mark.parametrize("module", MODULES)
def test_no_module_has_a_clock_that_others_may_stop(module):
    """time.monotonic() stands still under freezegun, and with it every timeout: fdpass._clock."""
    clocks = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "time", "time_ns"}
    used = [
        node.lineno
        for node in ast.walk(parsed(module))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "time"
        and node.attr in clocks
    ]
    taken = [i.line for i in imports(module) if i.module == "time" and clocks & {*i.names}]
    assert used + taken == []


# Where memory is looked at as bytes, and why none of it can be a pointer into this process, or what
# a masked array hides.  What an application gives goes through fdpass.lowlevel.exported(), and nothing else.
VIEWS = {
    ("fdpass/_sendable.py", "exported"): "the door itself",
    ("fdpass/_sendable.py", "_hides_something"): "a mask",
    ("fdpass/_region.py", "_view_of"): "memory made here",
    ("fdpass/_registry.py", "_export"): "memory made here",
    ("ipcqueue/_ring/frame_sender.py", "_push_large"): "what _records/messages.py has encoded",
    ("ipcqueue/_ring/frame_builder.py", "__init__"): "bytes made here",
    ("ipcqueue/_ring/outside.py", "fill"): "what _records/messages.py has encoded",
    ("ipcqueue/_ring/frame_sender.py", "try_send"): "what _records/messages.py has encoded",
    ("ipcqueue/_ring/frame_lending.py", "_lend_built"): "what was received",
    ("ipcqueue/_link/loans.py", "__init__"): "nothing",
    ("ipcqueue/_records/messages.py", "_contiguous"): "a view that was let through",
    ("ipcqueue/_records/codec.py", "window_of"): "what was received",
    ("ipcqueue/_records/opaque.py", "encode_buffer"): "a view that was let through",
    (
        "ipcqueue/_records/arrays.py",
        "encode",
    ): "an array of the record's dtype, which has no pointers",
    ("ipcqueue/_records/arrays.py", "encode_many"): "the same",
    ("ipcqueue/_records/arrays.py", "convert_many"): "an array made here",
    ("ipcqueue/_ring/memory.py", "map_segment"): "mapped here",
    ("ipcqueue/_records/arrays.py", "view"): "memory of the ring",
    ("ipcqueue/_ring/memory.py", "allocate"): "memory of the ring",
    ("ipcqueue/_ring/views.py", "new"): "memory of the ring",
    ("ipcqueue/_ring/slot_sender.py", "_batch_of"): "what _records/ has encoded",
    ("ipcqueue/_ring/slot_receiver.py", "_lend_from"): "what was received",
}
VIEWS_IN_C = {
    ("unpacking.c", "packer_unpack"): "what was received",
    ("truths.c", "normalise"): "what was received",
    ("sender.c", "is_plain"): "to see what it is",
    ("sender.c", "push_slot"): "what is_plain() or Python has let through",
    ("sender.c", "push_framed"): "what _records/messages.py has encoded",
    ("sender.c", "slots_push"): "what _records/ has encoded",
    ("sender.c", "frames_push"): "what _records/messages.py has encoded",
    ("batches.c", "push_array"): "an array of the record's dtype, which has no pointers",
    ("batches.c", "slots_push_packed"): "what _records/ has encoded",
}


def functions_that(module, does):
    """The innermost functions of a module in which a node is that `does` says."""

    def search(node, function):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if does(node):
            yield module, function
        for child in ast.iter_child_nodes(node):
            yield from search(child, function)

    return set(search(parsed(module), None))


def looks_at_memory(node):
    name = getattr(node, "id", getattr(node, "attr", None))
    return name in {"from_buffer", "frombuffer", "tobytes"} or (
        isinstance(node, ast.Call) and getattr(node.func, "id", None) == "memoryview"
    )


def test_memory_of_others_is_looked_at_through_one_door():
    found = set().union(*(functions_that(module, looks_at_memory) for module in MODULES))
    assert found == VIEWS.keys()


def test_in_c_too():
    found = set()
    for path in (REPOSITORY / "ipcqueue/core").rglob("*.c"):
        function = None
        for line in path.read_text().splitlines():
            if start := re.match(r"\w[\w ]* \*?(\w+)\([^;]*$", line):
                function = start[1]
            if "PyObject_GetBuffer" in line or re.search(r'"[^"]*[ysw]\*[^"]*:', line):
                found.add((path.name, function))
    assert found == VIEWS_IN_C.keys()


def is_a_time_in_seconds(node):
    """A value in an f-string that seconds follow: shown_seconds() says how many."""
    if not isinstance(node, ast.JoinedStr) or not node.values:
        return False
    return any(
        isinstance(value, ast.FormattedValue)
        and isinstance(text, ast.Constant)
        and re.match(r" (s|ms|seconds)\b", text.value)
        for value, text in itertools.pairwise(node.values)
    )


@pytest.mark.parametrize("module", MODULES)
def test_errors_say_times_as_they_were_given(module):
    wrong = functions_that(module, is_a_time_in_seconds)
    assert wrong <= {
        ("fdpass/_numbers.py", "shown_seconds"),
        ("ipcqueue/_link/options.py", "__new__"),  # a constant
        ("memenpsf/_places.py", "_lock"),  # another
    }


def reckons_with_a_timeout(node):
    """Whether something is reckoned with a timeout as the caller gave it, perhaps a timedelta."""

    def is_timeout(operand):
        return getattr(operand, "id", getattr(operand, "attr", None)) in {"timeout", "_timeout"}

    if isinstance(node, ast.BinOp):
        return is_timeout(node.left) or is_timeout(node.right)
    if isinstance(node, ast.Compare):
        ordered = not all(isinstance(each, ast.Is | ast.IsNot | ast.Eq) for each in node.ops)
        return ordered and any(map(is_timeout, (node.left, *node.comparators)))
    return False


@pytest.mark.parametrize("module", MODULES)
def test_nobody_reckons_with_a_timeout_before_it_is_seconds(module):
    assert functions_that(module, reckons_with_a_timeout) <= {("fdpass/_rights.py", "delays")}


@pytest.mark.parametrize("module", MODULES)
def test_no_function_computes_with_flags_of_an_enum(module):
    """It takes twenty times as long as with their numbers, of which a module makes constants."""

    def computes(node):
        return isinstance(node, ast.BinOp) and any(
            isinstance(operand, ast.Attribute)
            and (operand.attr.startswith("MSG_") or getattr(operand.value, "id", "") == "Seal")
            for operand in (node.left, node.right)
        )

    found = {(file, function) for file, function in functions_that(module, computes) if function}
    assert found <= {("fdpass/_memfd.py", "adopt")}  # a default


@pytest.mark.parametrize("module", MODULES)
def test_one_function_says_what_is_a_number(module):
    """isinstance(…, int) refuses numpy's; fdpass.lowlevel.index_of() takes all that have __index__."""

    def asks(node):
        return (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", None) == "isinstance"
            and "int" in {getattr(n, "id", None) for n in ast.walk(node.args[1])}
        )

    assert functions_that(module, asks) <= {
        ("ipcqueue/_leaving.py", "in_order"),  # of an exit code, as CPython asks
        ("ipcqueue/_threads.py", "push_many"),  # a result
        ("ipcqueue/_link/plans.py", "push_many"),  # a result
        ("ipcqueue/_records/fields.py", "_enum"),  # of an Enum, whose values are as they are
        ("ipcqueue/_records/fields.py", "_field_of"),  # a note of an annotation
        ("ipcqueue/_records/messages.py", "checked_tag"),  # where bools pass, too; then index_of()
        ("ipcqueue/_ring/outside.py", "take"),  # a result
        ("ipcqueue/_records/spec.py", "codec_for"),
        ("ipcqueue/_records/spec.py", "_make_codec"),  # after codec_for
        ("ipcqueue/_ring/slot_sender.py", "__init__"),  # after codec_for
        ("ipcqueue/_ring/slot_receiver.py", "__init__"),  # after codec_for
    }


# Who takes a stranger's memory file without having it keep its pages at once, and why it may.
KEEPS_PAGES_LATER = {
    "fdpass/_region.py": "Memfd.map() does it, which is the only way to its bytes",
    "ipcqueue/_ring/segment.py": "after all that may refuse it; tests/ipcqueue/test_segment.py says when",
}


@pytest.mark.parametrize("module", MODULES)
def test_a_strangers_memory_file_keeps_its_pages_before_it_is_mapped(module):
    later = [
        node.lineno
        for node in ast.walk(parsed(module))
        if isinstance(node, ast.Call) and "keep_pages" in {word.arg for word in node.keywords}
    ]
    assert len(later) == (module in KEEPS_PAGES_LATER)


def test_a_strangers_memory_file_is_asked_for_its_pages_in_one_place():
    asking = [module for module in MODULES if "st_blocks" in (REPOSITORY / module).read_text()]
    assert asking == ["fdpass/_pages.py"]


# Attributes that a loop may be over as they are, because nothing changes them: they are made once,
# replaced as a whole, or an iterator of C.  All else may be changed in the middle of a loop, by a
# signal handler that uses the same object (the locks are re-entrant), or by the garbage collector.
FIXED = {
    "_exporters",  # replaced as a whole
    "_fds",  # of one transfer
    "_decoding",  # replaced as a whole
    "_listener",  # of clients, by accept()
    "_looked",  # of one search for a server
    "_next_out",  # an iterator of C
    "_offers",  # an iterator of C
    "_raw",  # replaced as a whole
    "_ready",  # an iterator of C
    "_segments",  # of a handshake, which one caller drives
    "_slots",  # replaced as a whole
    "_source",  # a channel of Trio
    "_takes",  # an iterator of C
    "fds",  # of a message that the application has
    "ready",  # as _ready
    "ready_messages",  # as _ready
    "regions",  # as fds
}


@pytest.mark.parametrize("module", MODULES)
def test_no_loop_is_over_what_a_signal_handler_may_change(module):
    """A copy made by one call of C (tuple(), list(), a slice) is what a loop is over."""
    for node in ast.walk(parsed(module)):
        if not isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            continue
        over = node.iter
        if (
            isinstance(over, ast.Call)
            and isinstance(over.func, ast.Attribute)
            and over.func.attr in {"items", "keys", "values"}
        ):
            over = over.func.value
        of_self = isinstance(over, ast.Attribute) and getattr(over.value, "id", None) == "self"
        assert not of_self or over.attr in FIXED, (
            f"{module}:{over.lineno} loops over self.{over.attr}"
        )


# Where they may be: a thread sleeps on the first, without a with block.  The second stays a danger,
# because Condition asks its lock for private methods: if there is no memory to leave such a block,
# serve() may wait for ever.
LOCKS = {("ipcqueue/_link/waiters.py", "Lock"), ("memenpsf/_serve.py", "Condition")}


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("fdpass/")])
def test_a_with_block_that_holds_a_lock_needs_no_memory(module):
    """Where there is none, a lock of CPython's stays held; ipcqueue._direct.RLock does not."""
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.ImportFrom):
            assert node.module != "threading", node.lineno
        elif (
            isinstance(node, ast.Attribute)
            and getattr(node.value, "id", None) == "threading"
            and node.attr in {"Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore"}
        ):
            assert (module, node.attr) in LOCKS, f"{module}:{node.lineno} has a {node.attr}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("ipcqueue/")])
def test_what_must_be_done_after_an_exception_is_persisted_in(module):
    """A second exception of a signal handler may strike in each call that cleans up after a first.

    So such a call is made by persist(), which begins again; or it need not be made, where what an
    exception has left is found and put right by the next call (_forget, _unpark, _close_spent).
    """
    needless = {"_forget", "_unpark", "_close_spent"}
    for node in ast.walk(parsed(module)):
        bodies = []
        if isinstance(node, ast.ExceptHandler) and getattr(node.type, "id", "") == "BaseException":
            bodies = [node.body]
        elif isinstance(node, ast.Try):
            bodies = [node.finalbody]
        for statement in [each for body in bodies for each in body]:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                called = statement.value.func
                name = getattr(called, "id", getattr(called, "attr", None))
                assert name in {"persist", *needless}, f"{module}:{statement.lineno} calls {name}()"
