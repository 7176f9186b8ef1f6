# Two commands for a stranger: `make demo` and `make test`. Both set up .venv on first use, with
# the first of python3.11, 3.12 and 3.13 that runs; `make setup PYTHON=...` names another.
VENV  := .venv
READY := $(VENV)/.ready
# in a path with a space .venv is a link to a place without one, and is named by that
BIN    = $(shell readlink -f $(VENV))/bin
PY     = $(BIN)/python

LMDEPLOY := .lengthwise/lmdeploy

.PHONY: demo demo-real test test-fast vllm-matrix lmdeploy chaos soak lint format setup wheel clean

demo: $(READY)            ## train, register, calibrate, serve, compare with stock vLLM
	$(PY) -m lengthwise demo

demo-real: $(READY) $(VENV)/.reader  ## a real model: its own answers learned from, then compared (40 min)
	$(PY) -m lengthwise demo-real

test: $(READY)            ## the whole suite, real vLLM included: the engine's tests have the cores to themselves
	$(PY) -m pytest -m "not vllm"
	$(PY) -m pytest -n 0 -m vllm

test-fast: $(READY)       ## everything that needs no engine
	$(PY) -m pytest -m "not vllm"

vllm-matrix: $(READY)     ## contract tests and a real start on every supported vLLM (20 min)
	$(PY) -m benchmarks.engine.vllm_matrix

lmdeploy: $(READY) $(LMDEPLOY)/.ready  ## the second engine, in an environment of its own, and its tests (6 min)
	LENGTHWISE_LMDEPLOY=$(CURDIR)/$(LMDEPLOY) $(PY) -m pytest -n 0 -m lmdeploy

chaos: $(READY)           ## every fault on the real engine, the long ones too; then the table beside stock vLLM
	$(PY) -m pytest -n 0 -m "vllm or chaos" tests/vllm/live/test_chaos*.py
	$(PY) -m benchmarks.engine.faults --seconds 5 --pairs 1

soak: $(READY)            ## half an hour or 50,000 requests, watched for leaks and losses
	$(PY) -m benchmarks.engine.soak --minutes 30 --requests 50000

lint: $(READY)            ## ruff (lint, format) and mypy --strict on data/ and scheduler/
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(READY)

$(READY): requirements/setup.sh requirements/torch.txt requirements/pinned.txt requirements/dev.txt requirements/fleet.txt pyproject.toml
	PYTHON="$(PYTHON)" sh requirements/setup.sh $(VENV)
	touch $@

$(VENV)/.reader: $(READY) requirements/reader.txt
	$(PY) -m pip --disable-pip-version-check install -q --no-deps -r requirements/reader.txt
	touch $@

$(LMDEPLOY)/.ready: requirements/setup.sh requirements/torch.txt requirements/lmdeploy.txt
	PYTHON="$(PYTHON)" sh requirements/setup.sh $(LMDEPLOY) lmdeploy
	touch $@

wheel: $(READY)           ## dist/lengthwise-VERSION-py3-none-any.whl
	rm -rf build dist/lengthwise-*.whl
	$(PY) -m pip --disable-pip-version-check wheel -q --no-deps --no-build-isolation -w dist .

clean:
	for made in $(VENV) $(LMDEPLOY); do test ! -e $$made || rm -rf "$$(readlink -f $$made)"; done
	rm -rf $(VENV) build dist .lengthwise runs report.html mlruns/mlflow.db mlruns/artifacts
