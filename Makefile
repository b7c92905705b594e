# The same goals for people and for CI. `make demo` and `make test` install everything they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AUDIT := build/audit-venv/bin/pip-audit --strict --no-deps --disable-pip -r
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test check docs fuzz faults bench prove build minimal audit clean

help:
	@echo "make demo     create .venv and run the whole workflow on synthetic videos; minutes on a laptop"
	@echo "make test     create .venv for developers and run all tests"
	@echo "make check    ruff, mypy --strict and the order of imports"
	@echo "make docs     build docs/ as a site in site/; a broken link is an error"
	@echo "make build    build the wheel and run all tests against it"
	@echo "make minimal  run all tests with the lowest allowed versions of the dependencies"
	@echo "make bench    run the benchmarks and print one table; 20 minutes; AGAINST=FILE compares with an earlier run"
	@echo "make prove    run the studies: does every method learn, what does the cycle term add; hours"
	@echo "make faults   kill commands at random moments and compare with undisturbed runs"
	@echo "make fuzz     read damaged files of every kind; 10 minutes, or MINUTES=60 SEED=7"
	@echo "make audit    check the dependencies for known weaknesses; uses the package index"
	@echo "make clean    remove .venv and everything built"

demo: $(VENV)/user
	$(BIN)/cyclecontrast demo

test: $(VENV)/developer
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

check: $(VENV)/developer
	$(BIN)/ruff check src tests benchmarks studies fuzz faults examples mkdocs_*.py
	$(BIN)/ruff format --check src tests benchmarks studies fuzz faults examples mkdocs_*.py
	$(BIN)/mypy
	$(BIN)/mypy examples/*.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/system/test_floors.py

docs: $(VENV)/developer
	$(BIN)/python mkdocs_commands.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

MINUTES ?= 10
SEED ?= 0
fuzz: $(VENV)/developer
	OMP_NUM_THREADS=1 $(BIN)/python fuzz/run.py --minutes $(MINUTES) --seed $(SEED)

faults: $(VENV)/developer
	$(BIN)/python faults/kill_anywhere.py --kills 50 --seed $(SEED)
	$(BIN)/python faults/kill_anywhere.py --kills 20 --seed $(SEED) --cuts pretrain evaluate sweep
	$(BIN)/python faults/kill_before_writes.py --seed $(SEED)

bench: $(VENV)/developer
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/run.py $(if $(AGAINST),--against $(AGAINST))

prove: $(VENV)/developer
	OMP_NUM_THREADS=1 $(BIN)/python studies/methods.py
	OMP_NUM_THREADS=1 $(BIN)/python studies/cycle_term.py --seeds 0 1 2
	OMP_NUM_THREADS=1 $(BIN)/python studies/health_choice.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/accuracy_per_minute.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long

build: $(VENV)/developer
	rm -rf dist build/wheel-venv
	$(BIN)/python -m build --wheel --no-isolation
	$(PYTHON) -m venv build/wheel-venv
	build/wheel-venv/bin/pip install --quiet -c constraints.txt "$$(echo dist/*.whl)[dev]"
	cd build && OMP_NUM_THREADS=1 wheel-venv/bin/python -P -m pytest -c ../pyproject.toml \
		--rootdir .. ../tests

minimal: | $(BIN)/python
	rm -rf build/minimal-venv
	$(PYTHON) -m venv build/minimal-venv
	build/minimal-venv/bin/pip install --quiet -c constraints-minimal.txt -e ".[dev,faiss]"
	OMP_NUM_THREADS=1 build/minimal-venv/bin/python -m pytest

# With --strict, a package that the index does not know is an error, so the local part of a version (+cpu) is removed.
# Ignored for torch 2.10: weaknesses of torch.jit.script and of loading .pt2 files, which are not used here.
audit: $(VENV)/developer
	$(PYTHON) -m venv build/audit-venv
	build/audit-venv/bin/pip install --quiet pip-audit
	$(BIN)/pip freeze --exclude-editable | sed 's/+.*//' > build/installed.txt
	$(AUDIT) build/installed.txt
	$(AUDIT) constraints-minimal.txt --ignore-vuln CVE-2025-3000 --ignore-vuln CVE-2026-4538

clean:
	rm -rf $(VENV) dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/user: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/developer: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/user

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || \
		{ echo "error: $(PYTHON) is missing; install Python 3.11 or newer (Debian: apt install python3 python3-venv)"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $$($(PYTHON) --version) is too old, 3.11 is needed; name another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "error: $(PYTHON) has no venv module; install it (Debian: apt install python3-venv)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
