# Everything here runs in a private environment, .venv, that is made on first use.
# PYTHON is the interpreter to build it with (3.11 or later).

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
SOURCES := pyproject.toml setup.py $(wildcard ipcqueue/_build.py ipcqueue/core/*)

.PHONY: demo test lint wheel clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info ipcqueue/_core.* ipcqueue/_waiting.* ipcqueue/_direct.*
