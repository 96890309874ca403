# Two commands matter: `make demo` and `make test`. Both set up what they need, once, in .venv.
PYTHON ?= python3.11
EXTRAS ?= train,cluster,tracking,dev
VENV   := .venv
BIN    := $(VENV)/bin
UV     := uv==0.13.8
STAMP  := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
comma  := ,
export TOKENIZERS_PARALLELISM = false
export OMP_NUM_THREADS = 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test check test-engine test-browser chaos generate constraints bench bench-train clean

help:            ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## the virtual environment (.venv, 5 GB: torch comes with CUDA; about 2 minutes)

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV): about 2 minutes and 5 GB the first time"
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install it, or say PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(UV)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

demo: setup      ## two real rounds on this CPU (about 3 minutes); FAMILY=ctc or FAMILY=parakeet: one of that family
	@$(MAKE) --no-print-directory demo-$(FAMILY)

FAMILY ?= qwen3-asr

demo-qwen3-asr:
	@echo "round 1 of 2: a tiny Qwen3-ASR from random weights (about 2 minutes)"
	$(BIN)/caspi run rounds/demo-r1.yaml --cluster clusters/laptop.yaml
	@echo "round 2 of 2: audited data, phases B and A, from round 1 (about 2 minutes)"
	$(BIN)/caspi run rounds/demo-r2.yaml --cluster clusters/laptop.yaml
	@$(BIN)/caspi status demo-r2

demo-ctc demo-parakeet: demo-%:
	$(BIN)/caspi run rounds/demo-$*.yaml --cluster clusters/laptop.yaml
	@$(BIN)/caspi status demo-$*

test: setup check ## lint, types, import contracts, then every test (about 8 minutes)
	$(BIN)/pytest -m "not browser and not slow" --durations=10

check: setup     ## ruff, mypy, import-linter, generated files up to date (1 minute)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m caspi.generate --check

test-browser: setup ## the report in headless Chromium (needs Debian's chromium)
	$(BIN)/pytest -m browser

test-engine: setup ## the engine's invariants for every family, and elastic runs (about 7 minutes)
	$(BIN)/pytest tests/test_engine_*.py tests/test_elastic.py --durations=10

chaos: setup     ## demo-r2 killed 34 times at random points, 20 of them in training: the same records (about 8 minutes)
	$(BIN)/python tests/chaos.py

generate: setup  ## what is made from the code: JSON Schemas, parameter counts
	$(BIN)/python -m caspi.generate

constraints:     ## resolve constraints.txt anew, with hashes and without index addresses
	$(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet "$(UV)"
	$(BIN)/uv pip compile pyproject.toml --all-extras --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet -o constraints.txt

bench: setup     ## every figure of docs/benchmarks.md, both sides in one run
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

bench-train: setup ## a step of the engine against the upstream recipe on the same data and model (about 2 minutes)
	$(BIN)/python benchmarks/training.py

clean:           ## remove .venv and what the tools cached (not runs/)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
