# Everything a developer does, each from a fresh checkout: the virtual environment is made where it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint format type docs bench fuzz wheel clean

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(READY)  ## make the virtual environment with all packages, in the locked versions

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("ihc2he needs Python 3.11 or newer, found %d.%d: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --progress-bar off -c constraints.txt -e '.[app,dev,docs,explain,export,fid,slides,stain,tensorboard,dashboard]'
	@touch $@

SEED ?= 42
SIMULATED = $${IHC2HE_DATA:-data}/endonuke_sim/60x200px_seed0
demo: $(READY)  ## find nuclei on simulated IHC, then train both models on simulated tissue and compare, in some minutes
	$(BIN)/python -m ihc2he.simulate endonuke out=$(SIMULATED) tiles=60
	$(BIN)/python -m ihc2he.train experiment=demo/predict_tiles
	$(BIN)/python -m ihc2he.train experiment=demo/cyclegan_bci seed=$(SEED)
	$(BIN)/python -m ihc2he.train experiment=demo/hovernet_pannuke seed=$(SEED)
	$(BIN)/python -m ihc2he.train experiment=demo/pipeline_endonuke seed=$(SEED)

test: $(READY)  ## all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-all: $(READY)  ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --timeout 1800

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## put the code into the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## write the site of docs/ to site/; a warning is an error. To look at it: python -m http.server -d site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

bench: $(READY)  ## time ours against the references and their peers, side by side; ARGS=--write-docs renews the page
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/run.py $(ARGS)

fuzz: $(READY)  ## 600 malformed inputs: each ends in a clear message, a counted skip, or the right result
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/fuzz/run.py

wheel: $(READY)  ## build the wheel into dist/
	$(BIN)/python -m build --wheel

clean:  ## remove what building and testing left; data, stores and outputs stay
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
