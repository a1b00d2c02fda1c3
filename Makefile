# Every target makes .venv itself on first use; a second run reinstalls nothing.
PYTHON ?= python3
BIN := .venv/bin
MODEL ?=
OUT ?= demo-vectors.npy

.PHONY: demo test test-all lint bench bench-report compiled counted gpu gpu-check gpu-kernels gpu-models gpu-tune clean
.DEFAULT_GOAL := test

# torch goes first: as another package's dependency pip would install its newest build, not the tested one.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/.installed
	$(BIN)/erniem-fast demo --out "$(OUT)" $(if $(MODEL),--model "$(MODEL)")

# Each promise once.
test: .venv/.installed
	@$(BIN)/python -m pytest --quiet --no-header -m "not slow" -n 2 --dist worksteal

# What continuous integration runs.
test-all: test
	@$(BIN)/python -m pytest --quiet --no-header -m slow -n 2 --dist loadfile

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.installed
	$(BIN)/python -m bench.run

# README's and docs/benchmarks.md's tables, chart, plots and the roofline page, from the result files.
bench-report: .venv/.installed
	$(BIN)/python -m bench.report --write

# Registers, spills and faults of every kernel, by compiling it for GPUs that need not be there.
compiled: .venv/.installed
	$(BIN)/python -m bench.tools.compile_kernels --check

# The hot kernels' machine code against bench/results/counts.md; `python -m bench.tools.count_kernels --write` renews it.
counted: .venv/.installed
	$(BIN)/python -m bench.tools.count_kernels

# These install nothing: PYTHON is whatever has torch and triton for this machine's GPU. A part takes at most nine minutes.
GPU_PYTHON = PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

# All parts; with RESUME=DIR, what the files in DIR lack.
gpu:
	$(GPU_PYTHON) -m bench.gpu all $(if $(RESUME),--resume "$(RESUME)")

gpu-check:
	$(GPU_PYTHON) -m bench.gpu check

gpu-kernels:
	$(GPU_PYTHON) -m bench.gpu kernels

gpu-models:
	$(GPU_PYTHON) -m bench.gpu models

# Writes bench/results/tuned.json, which takes effect as kernels/tuned.json.
gpu-tune:
	for part in attention rows linear; do $(GPU_PYTHON) -m bench.tools.tune $$part --resume; done

clean:
	rm -rf .venv build dist *.egg-info
