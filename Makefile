# Every target sets up its own virtual environment on a bare machine with Python >= 3.11.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
RUN := runs/quickstart

# One more than cores, as tests wait for processes; beyond four they wait for what they share.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(os.cpu_count() + 1)")
# Workers share the cores, and threads that spin while they wait would take them from each other.
PYTEST = OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n $(WORKERS) --maxprocesses 4 --dist worksteal
FILE ?=

.PHONY: quickstart test test-numerics check quick coverage lint compiled format clean

quickstart: $(READY)
	$(BIN)/mess train-overprovisioned quickstart --run $(RUN)
	$(BIN)/mess search --run $(RUN) --target latency --max-error 0.01
	$(BIN)/mess export --run $(RUN)
	$(BIN)/mess evaluate --run $(RUN) --split calibration
	$(BIN)/mess evaluate --run $(RUN) --split test

# Everything, in random order; PYTEST_ADDOPTS=--randomly-seed=N repeats one.
test: $(READY)
	$(MAKE) -j 2 lint compiled
	$(PYTEST) --durations 10

# What is quick, or one file: make check FILE=tests/search/test_answer.py
check: $(READY)
ifeq ($(FILE),)
	$(MAKE) compiled
	$(MAKE) -j 2 -O lint quick
else
	$(BIN)/ruff check $(FILE)
	$(BIN)/ruff format --check $(FILE)
	$(BIN)/python -m pytest -q $(FILE)
endif

quick: $(READY)
	$(PYTEST) -m "not slow"

# What hangs on rounding once more, as on the oldest processors, with two threads and other inputs:
# at once, as each would find what hangs on it, and a run alone tells which it was.
test-numerics: $(READY)
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=2 MESS_TEST_SEED=1 \
		$(PYTEST) -m numerics

coverage: $(READY)
	$(PYTEST) --cov --cov-report term

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Loops are compiled once an installation; two workers would both compile them.
compiled: $(READY)
	$(BIN)/python -m tests.compiled

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
