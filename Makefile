# `make help` lists the targets. Everything lives in .venv, made from the locks in requirements/.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
# What starts Ray has a process of its own: a cluster's environment is read once in each. So has
# what trains: beside OpenVINO, DeepSpeed's second training in a process has crashed in torch.
OWN_PARTS := tests/train tests/data tests/deploy tests/serve tests/integration \
  tests/product tests/cluster
PARTS := "tests $(OWN_PARTS:%=--ignore=%)" $(OWN_PARTS)
IMAGE ?= raylm:$(LOCK)
LOCK ?= serve
.DEFAULT_GOAL := help
.PHONY: help demo test faults e2e cluster-up cluster-down check generate helm image clean

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

.venv/made: # the environment, and uv in it
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "raylm needs Python 3.11 or later: make PYTHON=python3.11 ..." >&2; exit 3; }
	@$(PYTHON) -m venv .venv || { echo "apt install python3-venv" >&2; exit 3; }
	@$(BIN)/pip install --quiet --disable-pip-version-check uv
	@touch $@

.venv/run: .venv/made requirements/run.txt pyproject.toml
	@echo "installing requirements/run.txt into .venv (about a minute, 7 GB)" >&2
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements/run.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

.venv/dev: .venv/made requirements/dev.txt pyproject.toml
	@echo "installing requirements/dev.txt into .venv (about a minute, 7 GB)" >&2
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements/dev.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch .venv/run $@

demo: .venv/run ## From text to a compressed model that answers over HTTP, in about five minutes
	@$(BIN)/raylm demo

test: .venv/dev check ## All checks and tests
	@failed=0; for part in $(PARTS); do \
	  echo "== tests: $$part"; \
	  $(BIN)/python -m pytest -m "not faults and not vllm" $$part || failed=1; \
	done; exit $$failed

faults: .venv/dev ## Kill and resume, at full counts
	@failed=0; for part in $(PARTS); do \
	  echo "== faults: $$part"; \
	  $(BIN)/python -m pytest -m faults $$part || [ $$? -eq 5 ] || failed=1; \
	done; exit $$failed

CONTEXT ?=
REDIS_IMAGE ?=
STORAGE_CLASS ?=
e2e: .venv/dev ## Kubernetes, for real: a cluster made here as root, or CONTEXT= (docs/kubernetes.md)
	@RAYLM_E2E_CONTEXT="$(CONTEXT)" RAYLM_E2E_IMAGE="$(IMAGE)" \
	  RAYLM_E2E_REDIS_IMAGE="$(REDIS_IMAGE)" RAYLM_E2E_STORAGE_CLASS="$(STORAGE_CLASS)" \
	  $(BIN)/python -m tests.e2e

cluster-up: ## A real Kubernetes with KubeRay on this machine, without Docker; needs root
	@$(PYTHON) -m k8s.local up

cluster-down: ## Remove it, and all that it left
	@$(PYTHON) -m k8s.local down

check: .venv/dev ## Style, types and the order of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

generate: .venv/dev ## Locks, the schema of the config, the document of the API, references
	@$(BIN)/uv pip compile --quiet --no-emit-index-url --python-version 3.11 \
	  --custom-compile-command "make generate" --extra all pyproject.toml \
	  -c requirements/constraints.txt -o requirements/run.txt
	@$(BIN)/uv pip compile --quiet --no-emit-index-url --python-version 3.11 \
	  --custom-compile-command "make generate" --extra serve pyproject.toml \
	  -c requirements/constraints.txt -c requirements/run.txt -o requirements/serve.txt
	@$(BIN)/uv pip compile --quiet --no-emit-index-url --python-version 3.11 \
	  --custom-compile-command "make generate" --extra all --extra dev pyproject.toml \
	  -c requirements/constraints.txt -c requirements/run.txt -o requirements/dev.txt
	@$(BIN)/raylm config schema > docs/config.schema.json
	@$(BIN)/python -m raylm.cli.reference > docs/cli.md
	@$(BIN)/python -m raylm.serve.openapi > docs/openapi.json
	@$(BIN)/python -m raylm.serve.parameters docs/serving.md
	@$(BIN)/python -m raylm.deploy.kubernetes.generate helm

HELM_VERSION := 4.3.1
BUILT := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/raylm/bin
helm: $(BUILT)/helm-$(HELM_VERSION) ## Helm, built once into the cache from its Go module
$(BUILT)/helm-$(HELM_VERSION):
	@command -v go >/dev/null || { echo "make helm needs Go 1.26 or later" >&2; exit 3; }
	@mkdir -p $(BUILT)/tmp && echo "building Helm $(HELM_VERSION) (some minutes)" >&2
	@GOBIN=$(BUILT)/tmp go install helm.sh/helm/v4/cmd/helm@v$(HELM_VERSION)
	@mv $(BUILT)/tmp/helm $@ && rmdir $(BUILT)/tmp

image: ## A container image (LOCK=serve or run, IMAGE=name:tag), by docker, podman or buildah
	@builder=$$(command -v docker || command -v podman || command -v buildah) || \
	  { echo "none of docker, podman and buildah is here" >&2; exit 3; }; \
	case $$builder in *docker) ;; *) format="--format docker";; esac; \
	$$builder build $${format:-} $(BUILD_FLAGS) \
	  --build-arg LOCK=$(LOCK) --build-arg REVISION=$$(git rev-parse HEAD) -t $(IMAGE) .

clean: ## Remove the environment and what tools left
	@rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
