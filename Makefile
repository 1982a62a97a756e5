# Everything here sets itself up on the first call: `make demo` on a fresh machine is enough.
PYTHON ?= python3.11
MODEL ?=
ARGS ?=
BIN := .venv/bin
PACKAGES := client/tritonembed engine/tritonembed_engine manager/tritonembed_manager perf/tritonembed_perf
DEMO_MODEL := .work/demo-model

SERVE := manager/tritonembed_manager/serve

.PHONY: help setup check test test-unit test-integration test-slow serve demo bench bench-quick proto clean

help:  ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20
	@echo "  PYTHON=… another Python than python3.11; MODEL=… a folder or a name on the hub; ARGS=… more options"

setup:  ## the virtual environment in .venv, with Triton and vLLM for a CPU
	@PYTHON="$(PYTHON)" bash scripts/setup.sh

check: setup  ## ruff, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup  ## every test that needs no GPU
	$(BIN)/python -m pytest $(ARGS)

# Its two halves: `make -j2 check test-integration test-unit` keeps two cores busy.
test-unit test-integration: setup
	$(BIN)/python -m pytest tests/$(@:test-%=%) $(ARGS)

test-slow: setup  ## what takes minutes; no part of .ci/run
	$(BIN)/python -m pytest tests/slow $(ARGS)

serve: setup $(if $(MODEL),,$(DEMO_MODEL)/config.json)  ## a server in the foreground, where the client looks for it: localhost:50050
	$(BIN)/tritonembed-manager replica --model "$(or $(MODEL),$(DEMO_MODEL))" --host 127.0.0.1 --port 50050 $(ARGS)

$(DEMO_MODEL)/config.json: | setup
	$(BIN)/python demo/model.py $(DEMO_MODEL)

demo: setup  ## a server, a corpus, its nearest neighbours; then all of it is stopped
	$(BIN)/python demo/run.py $(if $(MODEL),--model "$(MODEL)") $(ARGS)

bench: setup  ## speed and memory, as ratios against peers on this machine
	$(BIN)/python -m tritonembed_perf.bench $(ARGS)

bench-quick: setup  ## in three minutes: ratios against sentence-transformers; fails when they dropped by a fifth
	$(BIN)/python -m tritonembed_perf.quick $(ARGS)

proto: setup  ## the Python code of the manager's .proto
	$(BIN)/python -m grpc_tools.protoc --proto_path=$(SERVE)/proto --python_out=$(SERVE)/arctic_pb --pyi_out=$(SERVE)/arctic_pb arctic_inference.proto

clean:  ## remove what was made here
	rm -rf .venv .work dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
