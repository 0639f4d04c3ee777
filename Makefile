# make demo    train on the built-in shapes, draw, report         make test    run the tests
# make bench   time training and sampling, also PyTorch's if .venv has requirements-peers.txt
# make lint    check style and types                              make format  let ruff rewrite the code
# make test-slow  the tests that `make test` leaves out           make clean   delete .venv and caches
#
# PYTHON=python3.12       which Python makes .venv
# GPU=1                   install the CUDA plugin before the demo or `make bench`
# RUN=runs/mine           where the demo writes
# DEMO_FLAGS=--config.seed=1  more flags for its training
# PYTEST_FLAGS='-k data'  more flags for pytest
# PEERS=1                 install PyTorch and diffusers before `make bench` (some 5 GB)
# BENCH_FLAGS=--batch=64  more flags for both commands of `make bench`

PYTHON ?=
GPU ?=
RUN ?= runs/shapes
DEMO_FLAGS ?=
PYTEST_FLAGS ?=
PEERS ?=
BENCH_FLAGS ?=

PYTHONS := $(or $(PYTHON),python3.12 python3.11 python3)
VENV := .venv/bin/python
PIP := $(VENV) -m pip install -qq --disable-pip-version-check

.PHONY: demo test test-slow bench lint format clean

demo: .venv/requirements$(if $(GPU),-gpu).stamp
	$(VENV) main.py --config=configs/shapes.py --workdir=$(RUN) $(DEMO_FLAGS)
	$(VENV) main.py --mode=sample --workdir=$(RUN)
	$(VENV) main.py --mode=train_classifier --workdir=$(RUN)
	$(VENV) main.py --mode=evaluate --workdir=$(RUN)
	$(VENV) main.py --mode=report --workdir=$(RUN)

test: .venv/requirements-dev.stamp
	$(VENV) -m pytest -n 2 --dist loadfile $(PYTEST_FLAGS)

test-slow: .venv/requirements-dev.stamp
	$(VENV) -m pytest -m '(medium or long or slow) and not gpu' $(PYTEST_FLAGS)

bench: .venv/requirements$(if $(PEERS),-peers).stamp $(if $(GPU),.venv/requirements-gpu.stamp)
	$(VENV) -m benchmarks.train --out=runs/bench/train.json $(BENCH_FLAGS)
	$(VENV) -m benchmarks.sample --out=runs/bench/sample.json $(BENCH_FLAGS)

lint: .venv/requirements-dev.stamp
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(VENV) -m pyright

format: .venv/requirements-dev.stamp
	$(VENV) -m ruff check --fix .
	$(VENV) -m ruff format .

# Leaves runs/ alone: a Makefile should not delete what runs made.
clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than the requirements file that it stands for, so only an edited file is installed again.
.venv/requirements-%.stamp: requirements-%.txt .venv/requirements.stamp
	@echo "Installing $< into .venv ..."
	@$(PIP) -r $<
	@touch $@

# A Python is used only if it starts (a pyenv shim may not), is new enough and can make environments (on Debian that
# needs a separate package).
.venv/requirements.stamp: requirements.txt
	@if ! $(VENV) -m pip --version >/dev/null 2>&1; then \
	  for python in $(PYTHONS); do \
	    $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	    python=; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "error: tried $(PYTHONS), none is Python 3.11 or newer with venv; install it, or name it: make PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	  fi; \
	  echo "Making .venv with $$($$python --version) ..."; \
	  $$python -m venv .venv; \
	fi
	@echo "Installing $< into .venv: about a minute and 1.1 GB, once ..."
	@$(PIP) -r $< -e .
	@touch $@
