# The same verbs for a person and for CI. `make demo` and `make test` set up everything they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AUDIT := build/audit-venv/bin/pip-audit --strict --no-deps --disable-pip -r
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test check docs fuzz faults bench prove build minimal audit clean

help:
	@echo "make demo   set up .venv and go the whole path on built-in videos, minutes on a laptop's CPU"
	@echo "make test   set up .venv for developers and run every test"
	@echo "make check  ruff, mypy --strict, the floors of the architecture"
	@echo "make docs   the pages of docs/ as a site in site/; a broken link or a missing page fails"
	@echo "make fuzz   damaged files of every kind, read as the commands read them; 10 minutes, or MINUTES=60 SEED=7"
	@echo "make faults kill -9 anywhere in prepare, pretrain, evaluate and sweep: does each end to the bit as if undisturbed"
	@echo "make bench  the benchmarks: how close the evaluations come to their limits; minutes"
	@echo "make prove  the studies: does every objective learn, what does the cycle term add, what does health choose; hours"
	@echo "make build  the wheel, and every test against the installed wheel"
	@echo "make minimal  every test with the lowest versions that pyproject.toml allows"
	@echo "make audit  known weaknesses of what is installed, and of the lowest versions; asks pypi.org"
	@echo "make clean  remove .venv and everything built"

demo: $(VENV)/user
	$(BIN)/cyclecontrast demo

test: $(VENV)/developer
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

check: $(VENV)/developer
	$(BIN)/ruff check src tests benchmarks studies fuzz faults examples mkdocs_links.py
	$(BIN)/ruff format --check src tests benchmarks studies fuzz faults examples mkdocs_links.py
	$(BIN)/mypy
	$(BIN)/mypy examples/*.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/system/test_floors.py

docs: $(VENV)/developer
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
	@for file in benchmarks/[a-z]*.py; do \
		echo "== $$file" && OMP_NUM_THREADS=1 $(BIN)/python $$file || exit 1; done

prove: $(VENV)/developer
	OMP_NUM_THREADS=1 $(BIN)/python studies/methods.py
	OMP_NUM_THREADS=1 $(BIN)/python studies/cycle_term.py --seeds 0 1 2
	OMP_NUM_THREADS=1 $(BIN)/python studies/health_choice.py

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

# Strict, for what the index does not know would pass as clean; so the local part of a version (+cpu) is cut off.
# Excused for torch 2.10: weaknesses of torch.jit.script and of loading .pt2 files, neither of which is used here.
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
