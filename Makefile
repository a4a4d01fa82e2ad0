# radseal: what people type. `make` alone lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
LOCK    = $(BIN)/python -m uv pip compile pyproject.toml .ci/build.in --universal --python-version 3.11 \
          --generate-hashes --no-emit-index-url --no-header --quiet $(if $(UPGRADE),--upgrade)

.DEFAULT_GOAL := help
.PHONY: help demo test soak bench lock clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-7s %s\n", $$1, $$2}'

demo: $(VENV)/.runtime ## install what radseal needs and show one study going the whole way
	@echo '== radseal demo: a fake PACS, a signed model, a synthetic chest CT whose truth is known'
	@$(BIN)/radseal demo $(ARGS)

test: $(VENV)/.dev ## install the test tools and the Debian peers, then run every check
	@echo '== tests/check: peers, ruff, mypy, import-linter, pytest'
	@bash tests/check $(ARGS)

soak: $(VENV)/.dev ## the long proofs: at least 100 studies with kill -9 at random moments
	@echo '== the soak tests, full length (RADSEAL_SOAK=full)'
	@PATH="$$PATH:$(CURDIR)/$(BIN)" RADSEAL_SOAK=full $(BIN)/python -m pytest -p no:cacheprovider \
	  -m soak -o timeout=7200 --durations=10 -ra $(ARGS)

bench: $(VENV)/.dev ## C-STORE instances a second, side by side with storescp and Orthanc
	@echo '== tests/benchmarks: ratios within this one run; takes some minutes'
	@PATH="$$PATH:$(CURDIR)/$(BIN)" $(BIN)/python tests/benchmarks/intake.py $(ARGS)

lock: $(VENV)/bin/python ## pin every version again with hashes (UPGRADE=1 takes newer ones)
	@echo '== requirements.lock, requirements-dev.lock: no index address, hashes for every file'
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || $(PIP) install uv
	@$(LOCK) --output-file requirements.lock
	@$(LOCK) --extra dev --constraint requirements.lock --output-file requirements-dev.lock
	@grep -c -- '==' requirements.lock requirements-dev.lock

clean: ## remove the virtualenv and the caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'radseal needs Python 3.11 or newer: make PYTHON=python3.11 …' >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || bash .ci/debian python3-venv
	@echo '== a virtualenv in $(VENV)'
	@$(PYTHON) -m venv $(VENV)

# Stamp files: a second run with the same locks installs nothing.
# --no-deps, because the locks are complete (pip check says so): an older pip looks for newer
# releases of what somebody asks for with an extra, and then refuses them for want of a hash.
define INSTALL
@echo '== installing $< (every file checked by its hash), then radseal itself'
@$(PIP) install --no-deps --require-hashes -r requirements$(1).lock
@$(PIP) install --no-deps --no-build-isolation --editable .
@$(PIP) check
endef

$(VENV)/.runtime: requirements.lock pyproject.toml | $(VENV)/bin/python
	$(call INSTALL)
	@touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	$(call INSTALL,-dev)
	@touch $@ $(VENV)/.runtime
