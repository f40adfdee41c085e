# gamma-edge: `make help` lists the targets. Every target sets up .venv by itself; the first time needs a package index.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: demo test test-long bench study fuzz gpu-check lint format clean venv help cpp cpp-packages

BIN := .venv/bin
STAMP := .venv/.installed
EXTRAS := cpu,export,train,rtx,dev,fuzz
PYTHONS := python3.11 python3.12 python3.10 python3
FUZZ_SECONDS := 300
DEMO := build/demo.gamma
CPP_PACKAGES := cmake g++ libopencv-core-dev libopencv-imgproc-dev libopencv-imgcodecs-dev libopencv-videoio-dev \
  nlohmann-json3-dev libssl-dev zlib1g-dev libjpeg62-turbo-dev
PHOTOS := gamma_export/data/photos
# NVIDIA publishes TensorRT-RTX for x86-64 only; elsewhere the demo goes without an engine.
ENGINE := $(if $(filter x86_64,$(shell uname -m)),--engine tensorrt-rtx)

demo: $(STAMP) ## export the demo checkpoint, score the packaged photos, prove the bundle and its order
	@mkdir -p $(dir $(DEMO))
	$(BIN)/gamma-export -o $(DEMO) $(ENGINE)
	$(BIN)/gamma-run $(DEMO) $(PHOTOS)
	$(BIN)/gamma-verify $(DEMO) --against demo
	$(BIN)/gamma-order $(DEMO) --picture $(dir $(DEMO))order.png

# The runner's line stays the last one printed: CI reads it.
test: lint cpp-packages ## linters, types and all tests but those marked gpu or long
	$(BIN)/python -m pytest -m 'not gpu and not long' --durations=15

test-long: $(STAMP) cpp-packages ## the tests marked long
	$(BIN)/python -m pytest -m long --durations=15

# A goal that is not met, or a number that did not hold still, ends a benchmark with 7 or 8 and is in its file: the others
# run all the same, and the code is make's in the end.
bench: $(STAMP) ## this machine's performance in benchmarks/results, then the tables: about an hour on two cores (estimated)
	@code=0; $(MAKE) cpp || code=$$?; \
	for call in against.py overlap.py 'overlap.py --size full --photos 8' cpp_overhead.py 'cpp_overhead.py --size full --photos 5'; do \
	  echo "benchmarks/$$call"; $(BIN)/python benchmarks/$$call || code=$$?; \
	done; \
	$(BIN)/python benchmarks/tables.py && exit $$code

cpp: $(STAMP) cpp-packages ## the C++ runtime and its tools, in build/cpp/runtime/cpp
	cmake -S . -B build/cpp -DPython3_EXECUTABLE=$(abspath $(BIN)/python)
	cmake --build build/cpp -j

# Where nothing can be installed, the tests of the C++ runtime are skipped, with the reason.
cpp-packages:
	@missing=; for package in $(CPP_PACKAGES); do dpkg -s "$$package" >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing$$missing with apt-get"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing \
	    >/dev/null || echo "the C++ runtime is left out: apt-get could not install$$missing"; \
	else echo "the C++ runtime is left out: it needs$$missing"; fi

study: $(STAMP) ## the study checkpoint: find it, or train it (an hour and a half on two cores; photos in ../shared/data, for evaluation only)
	$(BIN)/python training/recipes/study.py

fuzz: $(STAMP) ## fuzz every intake for FUZZ_SECONDS (300) each; findings in build/fuzz
	@mkdir -p build; for target in $$($(BIN)/python -c 'from tests.fuzz.harness import NAMES; print(*NAMES)'); do \
	  echo "fuzzing $$target for $(FUZZ_SECONDS) s"; \
	  $(BIN)/python -m tests.fuzz.run $$target -max_total_time=$(FUZZ_SECONDS) 2> build/fuzz-$$target.log \
	    || { tail -n 30 build/fuzz-$$target.log >&2; exit 1; }; \
	  grep -E 'number_of_executed_units|peak_rss_mb' build/fuzz-$$target.log; \
	done

gpu-check: $(STAMP) ## the tests marked gpu; results in build/gpu-check
	$(BIN)/python tests/gpu_check.py build/gpu-check

lint: $(STAMP) ## ruff, its formatter, mypy --strict, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: $(STAMP) ## let ruff sort the imports and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what was built; .venv stays
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

venv: $(STAMP) ## .venv with everything the other targets need

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml setup.py constraints.txt
	@$(MAKE_VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

# A name on PATH is no proof (pyenv leaves shims that only print an error), so each candidate is run. A .venv whose
# Python is gone is made anew.
define MAKE_VENV
set -e; \
usable() { "$$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; }; \
whole() { "$$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }; \
may_apt() { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; }; \
apt() { echo "installing $$* with apt-get"; apt-get update -qq && \
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$$@"; }; \
find_python() { python=; for name in $(PYTHONS); do if usable "$$name"; then python="$$name"; return; fi; done; }; \
if usable $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1; then exit 0; fi; \
find_python; \
if [ -z "$$python" ] && may_apt; then apt python3 python3-venv || true; find_python; fi; \
if [ -z "$$python" ]; then \
  echo "error: Python 3.10, 3.11 or 3.12 is needed, and none of $(PYTHONS) is one" >&2; \
  echo "hint: as root: apt-get install python3 python3-venv; or install one and put it on PATH" >&2; exit 5; fi; \
if ! whole "$$python"; then \
  package="$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"; \
  if may_apt; then apt "$$package" || true; fi; \
  if ! whole "$$python"; then \
    echo "error: $$python has no venv module" >&2; echo "hint: as root: apt-get install $$package" >&2; exit 5; fi; fi; \
echo "making .venv with $$("$$python" --version) ($$python)"; \
"$$python" -m venv --clear .venv
endef
