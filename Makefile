# Every target sets up its own virtual environment on a bare machine with Python >= 3.11.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
RUN := runs/quickstart

.PHONY: quickstart test lint format clean

quickstart: $(READY)
	$(BIN)/mess train-overprovisioned quickstart --run $(RUN)
	$(BIN)/mess search --run $(RUN) --target latency --max-error 0.01
	$(BIN)/mess export --run $(RUN)
	$(BIN)/mess evaluate --run $(RUN) --split calibration
	$(BIN)/mess evaluate --run $(RUN) --split test

test: lint
	$(BIN)/python -m pytest --durations 10

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

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
