# Two commands for a newcomer, each from a fresh clone: `make demo`, `make test`.
# They need Python >= 3.11, git and make; everything else is installed into .venv.

PYTHON ?= python3
export PIP_DISABLE_PIP_VERSION_CHECK := 1
CHECKED := autoresearch.py loop data_collection finetune adapters eval trainer/*.py benchmarks/*.py tests
VENV := .venv
SANDBOX ?= auto
BIN := $(VENV)/bin
# A machine with an NVIDIA driver gets the CUDA build of torch, any other the CPU build.
CONSTRAINTS := constraints/$(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu).txt

.PHONY: demo test test-slow bench check format setup clean

demo: setup
	$(BIN)/autoresearch demo --out demo --sandbox $(SANDBOX)

test: check
	$(BIN)/pytest -n 2 -m "not slow"

test-slow: setup
	$(BIN)/pytest -n 2 -m slow

bench: setup
	$(BIN)/python -m benchmarks

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CHECKED)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints/cpu.txt constraints/cuda.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	@$(PYTHON) -c 'import venv, ensurepip' || { echo 'this Python cannot make virtual environments; install python3-venv'; exit 1; }
	@echo "installing into $(VENV) with $(CONSTRAINTS) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo
