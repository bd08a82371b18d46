# Every target sets up what it needs in .venv, once, and again when the dependencies change.

PYTHON ?= python3
VENV   ?= .venv
# Given to make alone: some shells export a HOST, which is the machine's name.
HOST   := $(or $(RNP_HOST),127.0.0.1)
PORT   := $(or $(RNP_PORT),8000)
DATA   ?=
OUT    ?=
BACKBONE ?= mcifarnet
ARGS   ?=
BENCH  ?= $(filter-out __init__ gpu_check gpu_training peers soak,$(sort $(basename $(notdir $(wildcard benchmarks/*.py)))))

python  := $(VENV)/bin/python
install := $(python) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
service := $(VENV)/.service
full    := $(VENV)/.full
inputs  := pyproject.toml constraints.txt
# The oldest Python that will do, and a check that fails with an older one, or with none.
oldest  := $(shell sed -n 's/^requires-python = ">=\(.*\)"/\1/p' pyproject.toml)
checked := -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(oldest)".split("."))))'

# ONNX Runtime reports to its makers unless told not to.
export ORT_DISABLE_TELEMETRY := 1

.PHONY: help serve setup test check format train bench gpu-check gpu-train clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(service)  ## the service on HOST:PORT (127.0.0.1:8000); RNP_… variables set the rest
	@RNP_HOST=$(HOST) RNP_PORT=$(PORT) exec $(python) -m service

setup: $(full)  ## PyTorch and all that training, tests and benchmarks need, into .venv

test: $(full) $(VENV)/bin/prometheus  ## all tests; ARGS go to pytest
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(python) -m pytest $(ARGS)

check: $(full)  ## format, lint, types, and who may import whom
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(full)  ## put the code into the project's format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

train: $(full)  ## a bundle from images: DATA=folder|data set OUT=directory [BACKBONE=…] [ARGS=…]
	@$(if $(and $(DATA),$(OUT)),,$(error make train needs DATA (images) and OUT (a new bundle directory)))
	@exec $(python) -m training fit --data $(DATA) --backbone $(BACKBONE) --out $(OUT) $(ARGS)

bench: $(full)  ## all benchmarks but peers, soak, fuzz and the GPU's, or some: BENCH="engines http"; ARGS="--data …" go to each
	@set -e; for name in $(BENCH); do $(python) -m benchmarks.$$name $(ARGS); done

gpu-check: $(full)  ## all that needs a GPU: correctness, benchmark, profiles, into benchmarks/results
	@$(python) -m benchmarks.gpu_check $(ARGS)

gpu-train: $(full)  ## on a GPU, side by side: backbones of three seeds and static rivals, of DATA
	@$(if $(DATA),,$(error make gpu-train needs DATA (images)))
	@$(python) -m benchmarks.gpu_training --data $(DATA) $(ARGS)

clean:  ## remove .venv and caches
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# The service alone needs no torch, so it is ready long before the rest.
$(service): $(inputs)
	@$(PYTHON) $(checked) || { exec >&2; \
	  echo "error: $(PYTHON) is not there, or older than Python $(oldest): name another one, as in"; \
	  echo "  make $(or $(MAKECMDGOALS),serve) PYTHON=python$(oldest)"; exit 1; }
	@echo "Setting up $(VENV) for the service; this happens once."
	@# Anew, where an older Python made it, or one that is gone: it would stay the one in use.
	@clear=; if test -e $(VENV)/pyvenv.cfg && ! $(python) $(checked) 2>/dev/null; then clear=--clear; fi; \
	  $(PYTHON) -m venv $$clear $(VENV)
	@$(install) --editable '.[cpu]'
	@touch $@

# torch comes first and by exact version, so that nothing else chooses another one.
$(full): $(service)
	@echo "Adding torch, training and the development tools to $(VENV); this happens once."
	@$(install) "$$(grep '^torch==' constraints.txt)"
	@$(install) --editable '.[cpu,otel,train,dev]'
	@touch $@

# A real Prometheus for the dashboard's test: the machine's own, or Debian's package unpacked here.
# Elsewhere that test fails until there is one; the others go on.
$(VENV)/bin/prometheus: | $(full)
	-@if command -v prometheus >/dev/null; then ln -s "$$(command -v prometheus)" $@; \
	  elif ! command -v apt-get >/dev/null; then \
	  echo "There is no prometheus on the PATH, and it is fetched on Debian alone: install it."; else \
	  cd $(VENV) && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; } \
	  && dpkg-deb --extract prometheus_*.deb prometheus && ln -s ../prometheus/usr/bin/prometheus bin/; fi
