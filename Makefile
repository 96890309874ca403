# Two commands matter: `make demo` and `make test`. Both set up what they need, once, in .venv.
PYTHON ?= python3.11
EXTRAS ?= train,cluster,pipelines,tracking,dev
VENV   := .venv
BIN    := $(VENV)/bin
UV     := uv==0.13.8
PINNED := --generate-hashes --no-emit-index-url --no-header --quiet
STAMP  := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
comma  := ,
export TOKENIZERS_PARALLELISM = false
export OMP_NUM_THREADS = 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test check test-engine test-browser chaos generate charts images image-pins cluster-up cluster-down cluster-env test-cluster test-pipeline test-gitops test-flux test-kfp pipelines pipeline-demo constraints bench bench-train clean

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

test: setup check ## lint, types, import contracts, then every test (about 11 minutes)
	$(BIN)/pytest -n 2 --dist loadfile -m "not browser and not slow and not cluster and not pipeline and not gitops and not flux and not kfp" --durations=10

check: setup     ## ruff, mypy, import-linter, generated files up to date (1 minute)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m caspi.generate --check

test-browser: setup ## the report in headless Chromium (needs Debian's chromium)
	$(BIN)/pytest -m browser

test-engine: setup ## what `make test` leaves out: elastic runs, every family killed and resumed, a killed pipeline (about 6 minutes)
	$(BIN)/pytest -n 2 --dist loadfile -m slow --durations=10

chaos: setup     ## demo-r2 killed KILLS=34 times at random points, 20 of them in training: the same records (about 8 minutes)
	$(BIN)/python tests/chaos.py $(if $(KILLS),--kills $(KILLS))

pipelines: setup ## compile the Kubeflow pipeline anew: pipelines/caspi-round.yaml; OPTIONS="--retries 3 --shm 16Gi -o FILE": another one
	$(BIN)/python -W ignore -m pipelines.caspi_round $(OPTIONS)

pipeline-demo: setup ## the demo's rounds by kfp.local, against `caspi run` (about 5 minutes); RUNNER=docker: round 1 in the images
	$(BIN)/python -m pipelines.demo --runner $(or $(RUNNER),process)

generate: setup  ## what is made from the code: JSON Schemas, references, the compiled pipeline
	$(BIN)/python -m caspi.generate

HELM ?= helm

charts: setup    ## lint the Helm charts and pack them into dist/charts; with REGISTRY=oci://... push them there
	@command -v $(HELM) >/dev/null || { echo "helm not found: install Helm 3.14 or later, or say HELM=/path/to/helm"; exit 2; }
	$(BIN)/python -m caspi.generate --check
	@rm -rf dist/charts
	@for chart in charts/*; do \
	  for values in $$chart/ci/*.yaml; do $(HELM) lint --strict --quiet $$chart --values $$values || exit 1; done; \
	  $(HELM) package $$chart --destination dist/charts || exit 1; \
	done
	@$(if $(REGISTRY),for packed in dist/charts/*.tgz; do $(HELM) push $$packed $(REGISTRY) $(PUSH_OPTIONS) || exit 1; done)

cluster-up:      ## a Kubernetes for development: kind, bare programs (WAY=kind|bare), or yours (CONTEXT=name REGISTRY=host/path); docs/local-cluster.md
	@tests/cluster/up $(if $(CONTEXT),--context "$(CONTEXT)" --registry "$(REGISTRY)",$(if $(WAY),--way "$(WAY)"))

cluster-down:    ## stop it; PURGE=1: forget its state too
	@tests/cluster/down $(if $(PURGE),--purge)

cluster-env:     ## prints what a shell needs to use it: eval it
	@tests/cluster/env

CLUSTER_UP = tests/cluster/up $(if $(CONTEXT),--context "$(CONTEXT)" --registry "$(REGISTRY)",--way "$(or $(WAY),bare)")

# By themselves: jobs of three workers, whose nodes are killed.
DISTURBED = tests/cluster/test_elastic_job.py

test-cluster: setup ## the Kubernetes tests on a real cluster (about 18 minutes, and 6 more to build and pull the images from nothing), of bare programs unless CONTEXT or WAY says otherwise (needs root then)
	@$(CLUSTER_UP)
	eval "$$(tests/cluster/env)" && $(BIN)/pytest -m cluster -n 2 --dist loadfile --no-loadscope-reorder tests/cluster --ignore=$(DISTURBED) --durations=10
	eval "$$(tests/cluster/env)" && $(BIN)/pytest -m cluster $(DISTURBED) --durations=5

test-pipeline: setup ## the pipeline in the real images: in containers alone, and with an elastic job on that cluster (about 7 minutes)
	@$(CLUSTER_UP)
	eval "$$(tests/cluster/env)" && $(BIN)/pytest -m pipeline tests/cluster --durations=5

test-gitops: setup ## rounds by a real Argo CD on the local cluster of bare programs (about 6 minutes; 10 more to build it, once)
	@tests/cluster/up --way bare
	eval "$$(tests/cluster/env)" && $(BIN)/pytest -m gitops tests/gitops --durations=10

test-flux: setup ## what `caspi flux` prints, read by Flux's own types and health expressions (needs Go; 4 minutes the first time)
	$(BIN)/pytest -m flux tests/test_flux.py

test-kfp: setup  ## --to kfp on a real backend: KFP_ENDPOINT=https://... CLUSTER=clusters/x.yaml, KFP_TOKEN if it asks; rounds are begun and cancelled
	@test -n "$(KFP_ENDPOINT)" -a -n "$(CLUSTER)" || { echo "which one? make test-kfp KFP_ENDPOINT=https://... CLUSTER=clusters/x.yaml (docs/kfp.md)"; exit 2; }
	KFP_ENDPOINT="$(KFP_ENDPOINT)" CLUSTER="$(CLUSTER)" $(BIN)/pytest -m kfp tests/test_pipeline_runs.py --verbose

constraints:     ## resolve constraints.txt anew, with hashes and without index addresses
	$(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet "$(UV)"
	$(BIN)/uv pip compile pyproject.toml --all-extras --python-version 3.11 $(PINNED) -o constraints.txt

images:          ## build images/ with docker, podman or buildah; REGISTRY=host/path pushes them, IMAGES=train only that; docs/images.md
	@images/build

image-pins: setup ## resolve the pins of images/serve and of what builds images anew
	$(BIN)/uv pip compile images/tools.in --python-version 3.11 $(PINNED) -o images/tools.txt
	$(BIN)/uv pip compile images/serve/requirements.in --python-version 3.11 --python-platform x86_64-unknown-linux-gnu $(PINNED) -o images/serve/constraints.txt

bench: setup     ## every figure of docs/benchmarks.md, both sides in one run
	for script in $(filter-out benchmarks/kubernetes_scale.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

bench-train: setup ## a step of the engine against the upstream recipe on the same data and model (about 2 minutes)
	$(BIN)/python benchmarks/training.py

clean:           ## remove .venv and what the tools cached (not runs/)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
