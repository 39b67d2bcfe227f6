# Everything here runs in a private environment, .venv, that is made on first use.
# PYTHON is the interpreter to build it with (3.11 or later); ARGUMENTS are for `make bench`.

PYTHON ?= python3
ARGUMENTS ?=
BIN := .venv/bin
STAMP := .venv/installed
SOURCES := pyproject.toml setup.py $(wildcard ipcqueue/_build.py ipcqueue/core/*)

.PHONY: bench demo test lint wheel clean

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
