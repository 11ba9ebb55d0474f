# Needs GNU make and Python 3.11 or later; all else is installed into .venv and .cache in this folder.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test check bench fuzz

# The engine tests run small transformers models on the CPU, one of them with a LoRA adapter.
TORCH := torch==2.13.0

help: ## Say what there is to make
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | sort | while IFS=$$'\t' read -r verb words; do \
		printf '  make %-8s %s\n' "$$verb" "$$words"; done

demo: .cache/demo/installed ## Run a gateway and a small model that reuses its KV, and print the difference
	.cache/demo/bin/python examples/demo/run.py

test: .venv/installed ## Run every test
	.ci/clients
	.ci/lmcache
	.venv/bin/pytest

check: .venv/installed ## Lint, format, types and layers
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: .venv/installed ## Run the load tests, about three minutes
	timeout 60 .venv/bin/python loadtest/arena.py
	timeout 60 .venv/bin/python loadtest/chain_hash.py
	timeout 60 .venv/bin/python loadtest/handle.py
	timeout 120 .venv/bin/python loadtest/restart.py --objects 100000
	timeout 120 .venv/bin/python loadtest/throughput.py --quick
	timeout 120 .venv/bin/python loadtest/soak.py --seconds 15
	timeout 120 .venv/bin/python loadtest/prefetch.py

fuzz: .cache/fuzz/installed ## Try every parser with FUZZ_INPUTS inputs, by default a million in about seven minutes
	.cache/fuzz/bin/python -m fuzz --inputs $${FUZZ_INPUTS:-1000000}

.venv/installed: pyproject.toml
	.ci/venv .venv --editable '.[dev,transformers]' $(TORCH) peft
	touch $@

.cache/demo/installed: pyproject.toml examples/demo/requirements.txt
	.ci/venv .cache/demo --editable . --requirement examples/demo/requirements.txt $(TORCH)
	touch $@

.cache/fuzz/installed: pyproject.toml fuzz/requirements.txt
	.ci/venv .cache/fuzz --editable . --requirement fuzz/requirements.txt
	touch $@
