# Everything happens in .venv, which the first call creates; stamps make the later calls quick.
#   make demo      real handwritten digits through a network compiled by dhc
#   make test      the test suite            make lint      style, types, layers
#   make bench     measurements -> JSON      make docs      the documentation, warnings are errors
#   make nightly   the long checks too       make setup     only the environment       make clean
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench docs nightly clean

PYTHON ?=
PIP_EXTRAS_DEV := test,lint,docs
BIN := .venv/bin
# Extra arguments, e.g. make test ARGS="tests/ir -k verifier"
ARGS ?=
# Two test processes where there are two cores; more would fight over the caches of a small machine.
WORKERS ?= $(shell [ "$$(nproc 2>/dev/null || echo 1)" -ge 2 ] && echo 2 || echo 0)

help:
	@sed -n '2,5p' Makefile | cut -c3-

.venv/.stamp-venv: scripts/make_venv.sh
	@scripts/make_venv.sh "$(PYTHON)"
	@touch $@

# What a user needs to see the demo: far less than a developer's tools.
.venv/.stamp-demo: .venv/.stamp-venv pyproject.toml runtime/pyproject.toml
	@scripts/install.sh "dhc with the demo's packages" -e ./runtime -e '.[demo]' onnxruntime
	@touch $@

.venv/.stamp-dev: .venv/.stamp-venv pyproject.toml runtime/pyproject.toml
	@scripts/install.sh "dhc with the tools for tests, lint and docs" -e ./runtime -e '.[$(PIP_EXTRAS_DEV)]'
	@touch .venv/.stamp-demo $@

.venv/.stamp-bench: .venv/.stamp-dev
	@scripts/install.sh "the engines that the benchmarks compare with" -e ./runtime -e '.[bench]'
	@touch $@

setup: .venv/.stamp-dev

demo: .venv/.stamp-demo
	@$(BIN)/dhc demo $(ARGS)

test: .venv/.stamp-dev
	@$(BIN)/python -m pytest -q -rsfE -n $(WORKERS) $(ARGS)

nightly: .venv/.stamp-dev
	@DHC_HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -q -rsfE -n $(WORKERS) -m "nightly or not nightly" $(ARGS)

lint: .venv/.stamp-dev
	@echo "[lint] ruff check";         $(BIN)/ruff check .
	@echo "[lint] ruff format";        $(BIN)/ruff format --check .
	@echo "[lint] Python 3.8";         $(BIN)/vermin --quiet --no-tips --violations -t=3.8- runtime/dhc_runtime
	@echo "[lint] mypy --strict";      $(BIN)/mypy
	@echo "[lint] layers";             $(BIN)/lint-imports

bench: .venv/.stamp-bench
	@$(BIN)/python -m bench $(ARGS)

docs: .venv/.stamp-dev
	@$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html $(ARGS)
	@echo "[docs] docs/_build/html/index.html"

clean:
	rm -rf .venv build dist docs/_build docs/_generated demo_out .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
