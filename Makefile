# Needs git, make and python3 (3.11 or newer, with venv); nothing else. `make` alone prints the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= $(firstword $(foreach name,python3 python3.12 python3.11 python3.13,\
    $(shell command -v $(name) >/dev/null && $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_WORKERS ?= 2
UV := $(BIN)/python -m uv

.PHONY: help setup demo test test-slow e2e lint bench lock

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: $(STAMP)  ## create .venv and install everything (quick when nothing changed)

demo: setup  ## the whole pipeline on the embedded scenes, on CPU; ends with a table of results
	@$(BIN)/s4m-pipeline demo

test: setup  ## the tests, without the slow ones, in two processes (make test TEST_WORKERS=8)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile

test-slow: setup  ## the slow tests (minutes)
	@$(BIN)/python -m pytest -q -m slow

e2e: setup  ## the three commands end to end on a dozen scenes
	@work=$$(mktemp -d) && trap 'rm -rf "$$work"' EXIT && $(BIN)/s4m-pipeline demo --tiny --work-dir "$$work"

lint: setup  ## ruff (format and rules) and mypy
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: setup  ## speed as ratios, appended to docs/results/bench.jsonl; one of them: make bench NAME=...
	@$(BIN)/python -m jobs.bench $(NAME)

lock: setup  ## bring constraints.txt up to date with pyproject.toml; versions that still fit stay
	@$(UV) pip compile -q --python-version 3.11 --extra dev --no-annotate --no-header \
	    -c constraints.txt pyproject.toml -o constraints.new
	@{ sed -n '/^#/p' constraints.txt; cat constraints.new; } > constraints.tmp
	@mv constraints.tmp constraints.txt && rm constraints.new

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no python3 of version 3.11 or newer found; install one, or name it: make setup PYTHON=..." >&2; exit 6; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	    { echo "make: $(PYTHON) has no venv module; install it (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 6; }
	@echo "Installing into $(VENV): about 5 GB, some minutes the first time ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@$(UV) pip install --python $(BIN)/python --constraint constraints.txt --build-constraint constraints.txt --editable '.[dev]'
	@touch $@
