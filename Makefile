# Everything here sets itself up on the first call: `make demo` on a fresh machine is enough.
PYTHON ?= python3.11
MODEL ?=
QUERY ?=
ARGS ?=
BIN := .venv/bin
PACKAGES := client/tritonembed_protocol client/tritonembed engine/tritonembed_engine bulk/tritonembed_bulk manager/tritonembed_manager perf/tritonembed_perf

APIS := manager/tritonembed_manager/router/apis
XDS := manager/tritonembed_manager/router/control/xds

.PHONY: help setup check unasync test test-unit test-integration test-manager test-engine test-slow test-clients test-deploy test-container pin-images release serve demo bench bench-quick chaos proto docs clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20
	@echo "  PYTHON=… another Python than python3.11; MODEL=… a folder or a name on the hub; QUERY=… a sentence for demo; ARGS=… more options"

setup:  ## the virtual environment in .venv, with Triton and vLLM for a CPU
	@PYTHON="$(PYTHON)" bash scripts/setup.sh

check: setup  ## ruff, formatting, generated code, imports between packages, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/unasync.py --check
	$(BIN)/ruff check --preview --select PLC2701 $(PACKAGES)  # no package imports what is private in another
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/mypy

unasync: setup  ## the blocking client, written from the asyncio client
	$(BIN)/python scripts/unasync.py

test: setup  ## every test that needs no GPU
	$(BIN)/python -m pytest $(ARGS)

test-unit test-integration: setup
	$(BIN)/python -m pytest tests/$(@:test-%=%) $(ARGS)

# The halves of `test-integration`. They share no server: `make -j2 test-unit test-engine test-manager` keeps two cores busy.
MANAGER_TESTS := $(wildcard tests/integration/test_serve_*.py) tests/integration/test_replica.py tests/integration/test_tune.py

test-manager: setup  ## the manager's processes over real tritonservers
	$(BIN)/python -m pytest $(MANAGER_TESTS) $(ARGS)

test-engine: setup  ## vectors and errors of real tritonservers
	$(BIN)/python -m pytest tests/integration $(MANAGER_TESTS:%=--ignore=%) $(ARGS)

test-slow: setup .venv/.bulk-done  ## tests that take minutes, which .ci/run leaves out
	$(BIN)/python -m pytest tests/slow $(ARGS)

test-clients: setup  ## other projects' clients, each in an environment of its own under .work; needs npm and the internet
	$(BIN)/python -m pytest tests/clients $(ARGS)

test-deploy: setup .venv/.deploy-done  ## Dockerfile, compose.yaml and Helm chart: linted, rendered, validated; no daemon, no cluster
	$(BIN)/python -m pytest tests/deploy $(ARGS)

.venv/.bulk-done: requirements/bulk.lock | setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps --require-hashes -r $<
	touch $@

.venv/.deploy-done: requirements/deploy.lock | setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --no-compile --no-deps --require-hashes -r $<
	touch $@

test-container: setup  ## build the images that need no image registry, and run the CPU image; needs root, debootstrap and buildah
	PYTHONPATH=. $(BIN)/python scripts/test_container.py $(ARGS)

pin-images:  ## add the digests that registries have now to the images of Dockerfile and compose.yaml
	$(PYTHON) scripts/pin_images.py Dockerfile deploy/compose/compose.yaml

release: setup  ## wheel, source archive, bills of materials and release notes in dist/, checked; publishes nothing
	$(BIN)/python scripts/release.py $(ARGS)

serve: setup  ## a server in the foreground on localhost:50050, the client's default address
	model="$(or $(MODEL),$$($(BIN)/python -m demo.model))" && \
	exec $(BIN)/tritonembed-manager replica --model "$$model" --host 127.0.0.1 --port 50050 $(ARGS)

# As typed: neither make nor the shell expands a $ in it.
export DEMO_QUERY := $(value QUERY)

demo: setup  ## start a server, show the sentences nearest to a few queries or to QUERY="…", stop it
	exec $(BIN)/python -m demo.run $(if $(MODEL),--model "$(MODEL)") $(if $(value QUERY),--query="$$DEMO_QUERY") $(ARGS)

bench: setup  ## speed and memory as ratios to other systems on this machine
	$(BIN)/python -m tritonembed_perf.scripts.bench full $(ARGS)

bench-quick: setup  ## ratios to sentence-transformers in four minutes; fails if they dropped by a fifth
	$(BIN)/python -m tritonembed_perf.scripts.bench quick $(ARGS)

chaos: setup  ## a minute of kills and hostile requests while clients check every vector; ARGS="--minutes 30 --out report.json"
	$(BIN)/python -m tritonembed_perf.chaos $(ARGS)

proto: setup  ## generate the Python code of the manager's .proto
	$(BIN)/python -m grpc_tools.protoc --proto_path=protos --python_out=$(APIS)/arctic_pb --pyi_out=$(APIS)/arctic_pb arctic_inference.proto
	$(BIN)/python -m grpc_tools.protoc --proto_path=$(APIS)/proto --python_out=$(XDS)/xds_pb --pyi_out=$(XDS)/xds_pb xds.proto

docs: setup .venv/.docs-done  ## build the documentation as a site in .work/site, after the pages that are generated from the code
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

.venv/.docs-done: requirements/docs.lock | setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps --require-hashes -r $<
	touch $@

clean:  ## remove everything that make created
	rm -rf .venv .work dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
