# make          build ./glint (installs what is missing first, says what it found)
# make run      build, then answer PROMPT with the bundled model
# make help     all targets
# Variables: BUILD (folder), JOBS, PROMPT, ARGS (more flags for `run`), CMAKE_ARGS (more flags for the configuration).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
MAKEFLAGS += --no-print-directory
.PHONY: build configure bootstrap run test bench check clean distclean help

BUILD ?= build/release
export PROMPT ?= Tell me a story about a little dragon who is afraid of the dark.
# A compiler process may take about 1.5 GB: as many jobs as cores, but no more than the free memory carries.
JOBS ?= $(shell awk -v cores=$$(nproc) '/MemAvailable/ { n = int($$2 / 1500000); if (n > cores) n = cores; if (n < 1) n = 1; print n }' /proc/meminfo)
NICE ?= nice

build: bootstrap  ## configure if needed, build, and link ./glint to the binary
	@tools/found.sh
	@$(MAKE) configure
	@$(NICE) cmake --build $(BUILD) -j $(JOBS) --target glint
	@ln -sf $(BUILD)/apps/glint glint
	@echo "built ./glint (try: make run)"

bootstrap:
	@tools/bootstrap.sh

# Ninja where it is, plain make otherwise; an existing build folder keeps its generator.
# CMake's own output is shown only when it fails.
configure:
	@mkdir -p $(BUILD)
	@if [[ ! -f $(BUILD)/CMakeCache.txt ]]; then \
	  generator=Ninja; command -v ninja >/dev/null || generator="Unix Makefiles"; \
	  set -- --preset release -B $(BUILD) -G "$$generator" -DGLINT_PYTHON=AUTO $(CMAKE_ARGS); \
	elif [[ -n "$(CMAKE_ARGS)" ]]; then set -- -B $(BUILD) $(CMAKE_ARGS); \
	else exit 0; fi; \
	cmake "$$@" >$(BUILD)/configure.log 2>&1 || { cat $(BUILD)/configure.log; exit 1; }

run: build  ## answer PROMPT with the bundled model: make run PROMPT="…" ARGS="--no-think"
	@./glint run -p "$$PROMPT" $(ARGS)

test: build  ## all tests, C++ and Python; the last line counts them
	@tools/bootstrap.sh --python
	@if [[ -f python/CMakeLists.txt ]]; then $(MAKE) configure \
	  CMAKE_ARGS="-DGLINT_PYTHON=ON -DPython_EXECUTABLE=$(abspath .venv/bin/python)"; fi
	@$(NICE) cmake --build $(BUILD) -j $(JOBS)
	@tools/run_tests.sh cpp $(BUILD) -j $(JOBS)
	@tools/run_tests.sh python $(BUILD)
	@python3 tools/test_summary.py $(BUILD)/reports

bench: build  ## measure this machine and the bundled model; add results to bench/results
	@./glint bench $(ARGS)

check:  ## format, layers, sizes, switches, headers that compile alone, clang-tidy
	@tools/bootstrap.sh --dev
	@$(MAKE) configure
	@tools/check.sh $(BUILD)

clean:  ## remove this build and ./glint
	@rm -rf $(BUILD) glint

distclean: clean  ## remove every build and the virtual environment
	@rm -rf build .venv

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12
