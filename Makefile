# make demo: set up .venv and compare agents in the simulator. make test: set up and pass the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable
OUT ?= runs/demo

.PHONY: demo test lint clean

demo: $(VENV)/.demo
	$(BIN)/prefenv compare --agents random dts drts deltaucb infomax ppo learned maxmin oracle-greedy --seeds 50 --out $(OUT)

test: $(VENV)/.test
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) '.[rl]'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) '.[rl,llm,replay,dev]'
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build *.egg-info
