# Everything here runs in a private environment, .venv, that is made on first use.
# PYTHON is the interpreter to build it with (3.11 or later); ARGUMENTS are for `make bench` and for
# every pytest; `make test` runs TESTED, all but the campaigns unless told otherwise, and
# `make sanitize` TESTS; LANES are options of tests/kit/lanes.py, such as `--jobs 1`.

PYTHON ?= python3
ARGUMENTS ?=
LANES ?=
TESTED ?= $(filter-out tests/reliability/% tests/fuzz/%,$(wildcard tests/*/test_*.py))
BIN := .venv/bin
STAMP := .venv/installed
# setuptools warns at each editable install that there are folders named as the packages.
QUIETLY := PYTHONWARNINGS=ignore
SOURCES := pyproject.toml setup.py $(wildcard ipcqueue/_build.py ipcqueue/core/*.[ch] ipcqueue/core/*/*.[ch])

.PHONY: analyze bench campaigns check clean coverage demo fuzz interpreters lint mutants sanitize soak test wheel

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/python tests/kit/lanes.py $(LANES) $(TESTED) -- $(ARGUMENTS)

# Before each commit: what is wrong at first sight, and those tests that together take less than a
# minute of two processors; build/test-times.json tells how long each file took.
SLOW := $(wildcard tests/examples/*.py tests/model/*.py tests/signals/*.py) \
	$(patsubst %,tests/conformance/test_%.py,large listeners serve trouble) \
	$(patsubst %,tests/ipcqueue/test_%.py,attachments blocking deque direct frames loan queue shelf shortage waiting) \
	$(patsubst %,tests/memenpsf/test_%.py,listener processes trio) \
	$(patsubst %,tests/project/test_%.py,benchmarks benchmarks_hostile harness lanes packaging)

check: lint
	$(BIN)/python tests/kit/lanes.py $(LANES) $(filter-out $(SLOW),$(TESTED)) -- $(ARGUMENTS)

# What kills, floods, exhausts and fuzzes; docs/reliability.md says how much of each.
campaigns: $(STAMP)
	$(BIN)/python -m pytest $(ARGUMENTS) tests/reliability tests/fuzz

bench: $(STAMP) .venv/peers
	$(BIN)/python -m benchmarks --json build/bench/results.json --pictures build/bench $(ARGUMENTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# All that is written in C, as the warnings and the analyzer of GCC see it; Python's own headers are
# not ours to mend, nor is what PyTypeObject leaves out.
ANALYZED := $(wildcard ipcqueue/core/*.c ipcqueue/core/*/*.c tests/reliability/*.c tests/covered/*.c benchmarks/baselines/*.c)
ANALYZE := gcc -std=c11 -D_GNU_SOURCE= -O2 -Wall -Wextra -Wshadow -Wconversion -Werror \
	-Wno-missing-field-initializers -fanalyzer -Iipcqueue/core

analyze: $(STAMP)
	for file in $(ANALYZED); do \
		$(ANALYZE) -isystem "$$($(BIN)/python -c \
			'import sysconfig; print(sysconfig.get_path("include"))')" \
			-c -o /dev/null $$file || exit; \
	done

# A copy of the sources beside extensions that notice misuse of memory and undefined behaviour, and
# keep the assertions of Python's headers; those that .venv uses stay as they are.
SANITIZED := build/sanitized
SANITIZERS := -fsanitize=address,undefined -fno-omit-frame-pointer -g -O1 -UNDEBUG
TESTS ?= tests/project/test_harness.py \
	$(wildcard $(patsubst %,tests/%/test_*.py,ipcqueue signals memenpsf conformance))

# $(call copied,directory,flags for the compiler,objects to link): the packages, with extensions built
# by those flags.  By way of a compiler of its own, as the flags of setup.py come behind those of the
# environment.
COPIED := $(SOURCES) $(shell find fdpass ipcqueue memenpsf -name '*.py')
define copied
	rm -rf $(1)
	mkdir -p $(1)
	cp -r fdpass ipcqueue memenpsf setup.py pyproject.toml README.md LICENSE $(1)
	rm -f $(1)/ipcqueue/*.so
	printf '#!/bin/sh\nexec cc "$$@" %s\n' '$(2)' >$(1)/cc
	chmod +x $(1)/cc
	cd $(1) && CC="$$PWD/cc" LDSHARED="$$PWD/cc -shared $(3)" \
		$(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace
	touch $(1)/built
endef

# The children that tests start inherit all this.  Python is not built for it, so the libraries are
# loaded first; it frees little of what it holds when it exits, so leaks are not looked for; and its
# own allocator would hide its objects.
sanitize: $(SANITIZED)/built
	rm -rf $(SANITIZED)/tests $(SANITIZED)/examples $(SANITIZED)/docs
	cp -r tests examples docs $(SANITIZED)
	cd $(SANITIZED) && \
		MEMENPSF_SANITIZED=1 PYTHONPATH="$$PWD" PYTHONMALLOC=malloc \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
		LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" \
		$(CURDIR)/$(BIN)/python -m pytest $(ARGUMENTS) $(TESTS)

$(SANITIZED)/built: $(STAMP) $(COPIED)
	$(call copied,$(SANITIZED),$(SANITIZERS))

# A copy beside extensions that count what of them runs.  The same random seed, as the C core is
# compiled once for each extension, and all of them add to the same counts.
COVERED := build/covered
COUNTERS := --coverage -O0 -g -fprofile-update=atomic -frandom-seed=1
COVERED_TESTS ?= tests/reliability/test_models_of_the_queue.py $(filter-out %/test_storms.py,\
	$(wildcard $(patsubst %,tests/%/test_*.py,fdpass ipcqueue signals memenpsf conformance)))
# Each file in a process of its own: some switch the tracer off, which coverage.py does not get over.
# The tracer needs memory, too.
UNTRACED := no_memory_for or memory_is_short
COVER := $(CURDIR)/$(BIN)/python -m coverage run -m pytest -q -k "not storm and not uvloop and not ($(UNTRACED))" $(ARGUMENTS)

# Without the tests whose signals come faster than a program that is traced can handle them.
coverage: $(COVERED)/built
	rm -rf $(COVERED)/tests $(COVERED)/examples $(COVERED)/docs $(COVERED)/.coverage*
	find $(COVERED) -name '*.gcda' -delete
	cp -r tests examples docs $(COVERED)
	cp tests/covered/sitecustomize.py $(COVERED)
	cp tests/covered/coveragerc $(COVERED)/.coveragerc
	cd $(COVERED) && export PYTHONPATH="$$PWD" MEMENPSF_TIMES=0.02 && \
		for file in $(COVERED_TESTS); do $(COVER) $$file || exit 1; done && \
		$(CURDIR)/$(BIN)/python -m pytest -q -k "$(UNTRACED)" $(COVERED_TESTS) && \
		$(CURDIR)/$(BIN)/python -m coverage combine --quiet && rm -f .coverage.* && \
		$(CURDIR)/$(BIN)/python tests/covered/gates.py

$(COVERED)/built: $(STAMP) $(COPIED) tests/covered/dump.c
	mkdir -p build
	cc -O2 -fPIC -c -o build/dump.o tests/covered/dump.c
	$(call copied,$(COVERED),$(COUNTERS),$(CURDIR)/build/dump.o)

# Other versions of Python, as many as there are here: each in an environment and with a copy of the
# sources of its own, below build/interpreters.  A free-threaded one must be 3.14 or later, because cffi
# refuses 3.13t, and needs PYTHON_GIL=1, because warnings are errors.
PYTHONS ?= python3.12 python3.13
INTERPRETER_TESTS ?= tests/project/test_interpreters.py \
	$(patsubst %,tests/%,fdpass ipcqueue signals memenpsf conformance)

interpreters:
	for python in $(PYTHONS); do \
		copy=build/interpreters/$$(basename $$python); \
		rm -rf $$copy/fdpass $$copy/ipcqueue $$copy/memenpsf $$copy/tests $$copy/examples $$copy/docs && \
		mkdir -p $$copy && \
		cp -r fdpass ipcqueue memenpsf tests examples docs setup.py pyproject.toml README.md LICENSE $$copy && \
		rm -f $$copy/ipcqueue/*.so && \
		$$python -m venv $$copy/.venv && \
		(cd $$copy && PYTHONWARNINGS=ignore .venv/bin/python -m pip install --quiet --editable '.[test]' && \
			.venv/bin/python -m pytest -q $(ARGUMENTS) $(INTERPRETER_TESTS)) || exit 1; \
	done

# Takes one rule after another out of the source: each must have a test that guards it.
MUTANTS ?=

mutants: $(STAMP)
	$(BIN)/python tests/reliability/mutants.py $(MUTANTS)

# What does not fit into CI, three quarters of an hour: TIMES as much of every campaign, from a seed of its own,
# which is printed; all fuzzing; all tests with sanitizers; the crowd of hostile clients.
TIMES ?= 2

soak: $(STAMP) .venv/fuzz
	export MEMENPSF_TIMES=$(TIMES) MEMENPSF_SEED=$${MEMENPSF_SEED:-$$(date +%s)} && \
		echo "MEMENPSF_SEED=$$MEMENPSF_SEED" && \
		$(BIN)/python -m pytest tests/reliability && \
		$(MAKE) fuzz
	$(MAKE) sanitize
	$(BIN)/python -m benchmarks.hostile

# Each target so long, one after the other; CLANG names the compiler for the one in C.
FUZZ_SECONDS ?= 180
FUZZ_TARGETS ?= control handshake image ring

fuzz: .venv/fuzz
	for target in $(FUZZ_TARGETS); do \
		$(BIN)/python tests/fuzz/fuzzing.py $$target --seconds $(FUZZ_SECONDS) || exit; done

.venv/fuzz: $(STAMP)
	$(QUIETLY) $(BIN)/python -m pip install --quiet --editable '.[fuzz]'
	touch $@

$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(QUIETLY) $(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# One by one: a peer that cannot be installed here is absent from the tables, and the others are not.
.venv/peers: $(STAMP)
	for peer in $$($(BIN)/python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
			print(*project["optional-dependencies"]["bench"])'); do \
		$(BIN)/python -m pip install --quiet --only-binary :all: $$peer || true; done
	touch $@

clean:
	rm -rf .venv build *.egg-info ipcqueue/_core.* ipcqueue/_waiting.* ipcqueue/_direct.* ipcqueue/_packer.*
