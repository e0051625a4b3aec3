# Everything runs in .venv, made with pip alone. `touch` marks what is installed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
CODE := src tests bench examples experiments

.PHONY: demo test test-all bench results lint format clean setup

demo: setup            ## the whole method on the embedded model
	$(BIN)/solon run demo --run-dir runs/demo

test: setup            ## the fast tests
	$(BIN)/python -m pytest -m "not slow"

test-all: setup        ## all tests
	$(BIN)/python -m pytest

lint: setup            ## format, rules, types
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy

format: setup          ## apply the format
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

bench: setup           ## measurements, one JSON line a figure; the last two want public data, see their first lines
	$(BIN)/python bench/labels.py
	$(BIN)/python bench/generate.py
	$(BIN)/python bench/transformers_ways.py
	$(BIN)/python bench/stream.py
	$(BIN)/python bench/finetune.py
	$(BIN)/python bench/ppo_gradients.py
	$(BIN)/python bench/ppo.py
	$(BIN)/python bench/refusal_agreement.py
	$(BIN)/python bench/judges.py

results: setup         ## the README's tables of recipes/tiny.yaml and demo.yaml: from what is kept of three seeds (--anew runs them), with the public sets of docs/experiments.md
	$(BIN)/python experiments/results.py
	$(BIN)/python experiments/results.py --recipe demo

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:                 ## remove the environments and the runs
	rm -rf .venv .venv-trl runs
