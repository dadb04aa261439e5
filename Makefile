# Needs Python 3.11+ and pip. `make demo` and `make test` make their own virtual environment.
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo-run
# Processes of `make test`.
JOBS ?= 2
# More flags for pip, such as the index of PyTorch's CPU builds, which README names.
PIP_ARGS ?=
# cpu, cuda12 or cuda13: by the CUDA version that the driver supports, or cpu where there is no driver.
DRIVER_CUDA = $(shell nvidia-smi 2>/dev/null | sed -nE 's/.*CUDA [A-Za-z ]*Version: *([0-9]+).*/\1/p')
EXTRA ?= $(if $(DRIVER_CUDA),$(if $(filter 10 11 12,$(DRIVER_CUDA)),cuda12,cuda13),cpu)
BIN := $(VENV)/bin

.PHONY: demo test soak lint docs linkcheck audit lock lock-check clean
demo: $(VENV)/.installed
	$(BIN)/unfused-fast demo --out $(OUT) --overwrite

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# Dozens of kills of each stage, and of ranks that are started again, a Ray cluster, compilers that are stopped: 20 minutes.
soak: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m soak

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	! test -x $(BIN)/hadolint || $(BIN)/hadolint Dockerfile

# The site, docs/_build/html: pages, Python API from docstrings; a warning is an error. linkcheck asks every address.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

linkcheck: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -q -b linkcheck docs docs/_build/linkcheck

# Known vulnerabilities of what is installed, by pip-audit in an environment of its own; asks PyPI's advisory database.
audit: $(VENV)/.installed
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet $(PIP_ARGS) pip-audit
	$(VENV)-audit/bin/pip-audit --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

# Renews requirements/*.txt from the package index; lock-check resolves them again for every Python. Neither installs
# what it resolves.
lock lock-check:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet $(PIP_ARGS) uv
	PATH="$(abspath $(VENV)-lock/bin):$$PATH" bash requirements/$@.sh

$(VENV)/pyvenv.cfg:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/pyvenv.cfg pyproject.toml $(wildcard requirements/*.txt)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c requirements/$(EXTRA).txt -e '.[$(EXTRA)]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/pyvenv.cfg pyproject.toml $(wildcard requirements/*.txt)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c requirements/$(EXTRA)-dev.txt -e '.[$(EXTRA),dev]'
	# tests compare losses with its, which need nothing else of what it asks for
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps lightly==1.6.0
	touch $(VENV)/.installed $@

$(VENV)/.installed-docs: $(VENV)/.installed requirements/docs.txt
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -r requirements/docs.txt
	touch $@

clean:
	rm -rf docs/_build $(VENV) $(VENV)-audit $(VENV)-lock $(OUT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
