# Everything here runs in a private environment, .venv, that is made on first use.
# PYTHON is the interpreter to build it with (3.11 or later); ARGUMENTS are for `make bench` and for
# the pytest of `make sanitize`, which runs TESTS.

PYTHON ?= python3
ARGUMENTS ?=
BIN := .venv/bin
STAMP := .venv/installed
SOURCES := pyproject.toml setup.py $(wildcard ipcqueue/_build.py ipcqueue/core/*)

.PHONY: analyze bench clean demo fuzz lint sanitize test wheel

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest

bench: $(STAMP) .venv/peers
	$(BIN)/python -m benchmarks --json build/bench/results.json --pictures build/bench $(ARGUMENTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# All that is written in C, as the warnings and the analyzer of GCC see it; Python's own headers are
# not ours to mend, nor is what PyTypeObject leaves out.
ANALYZED := $(wildcard ipcqueue/core/*.c tests/*/*.c benchmarks/baselines/*.c)
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
TESTS ?= $(wildcard tests/test_harness.py tests/test_ipcqueue_*.py tests/test_memenpsf_*.py)

# The children that tests start inherit all this.  Python is not built for it, so the libraries are
# loaded first; it frees little of what it holds when it exits, so leaks are not looked for; and its
# own allocator would hide its objects.
sanitize: $(SANITIZED)/built
	rm -rf $(SANITIZED)/tests $(SANITIZED)/examples
	cp -r tests examples $(SANITIZED)
	cd $(SANITIZED) && \
		MEMENPSF_SANITIZED=1 PYTHONPATH="$$PWD" PYTHONMALLOC=malloc \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
		LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" \
		$(CURDIR)/$(BIN)/python -m pytest $(ARGUMENTS) $(TESTS)

# By way of a compiler of its own, as the flags of setup.py come behind those of the environment.
$(SANITIZED)/built: $(STAMP) $(SOURCES) $(wildcard fdpass/*.py ipcqueue/*.py memenpsf/*.py)
	rm -rf $(SANITIZED)
	mkdir -p $(SANITIZED)
	cp -r fdpass ipcqueue memenpsf setup.py pyproject.toml README.md LICENSE $(SANITIZED)
	rm -f $(SANITIZED)/ipcqueue/*.so
	printf '#!/bin/sh\nexec cc "$$@" %s\n' '$(SANITIZERS)' >$(SANITIZED)/cc
	chmod +x $(SANITIZED)/cc
	cd $(SANITIZED) && CC="$$PWD/cc" LDSHARED="$$PWD/cc -shared" \
		$(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

# Each target so long, one after the other; CLANG names the compiler for the one in C.
FUZZ_SECONDS ?= 180
FUZZ_TARGETS ?= control handshake image ring

fuzz: .venv/fuzz
	for target in $(FUZZ_TARGETS); do \
		$(BIN)/python tests/fuzz/fuzzing.py $$target --seconds $(FUZZ_SECONDS) || exit; done

.venv/fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[fuzz]'
	touch $@

$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# One by one: a peer that cannot be installed here is absent from the tables, and the others are not.
.venv/peers: $(STAMP)
	for peer in $$($(BIN)/python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
			print(*project["optional-dependencies"]["bench"])'); do \
		$(BIN)/python -m pip install --quiet --only-binary :all: $$peer || true; done
	touch $@

clean:
	rm -rf .venv build *.egg-info ipcqueue/_core.* ipcqueue/_waiting.* ipcqueue/_direct.* ipcqueue/_records.*
