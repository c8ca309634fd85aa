# make demo: environment, install, the main job on embedded data.   make test: environment, install, tests.
# make gpu: environment, install, the tests and the benchmark that need a CUDA device, within eight minutes.
# make docs: environment, install, the pages in docs/_build/html, warnings as errors.
# make oldest: the lower bounds of all dependencies in an environment of their own, and TESTS there; 4 GB of downloads.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OLDEST ?= .venv-oldest
TESTS ?= tests

.PHONY: demo test lint gpu docs oldest clean

demo: $(VENV)/installed
	$(BIN)/pruning-limits demo

test: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu: $(VENV)/installed
	@cuda=$$($(BIN)/python -c "import torch; print(torch.cuda.is_available())") && \
	if [ "$$cuda" = True ]; then \
	  CUBLAS_WORKSPACE_CONFIG=:4096:8 $(BIN)/python -m pytest -m cuda && \
	  $(BIN)/python benchmarks/gpu.py --out docs/results/gpu; \
	else echo "no CUDA device here: nothing was run"; fi

docs: $(VENV)/installed-docs
	MPLBACKEND=Agg $(BIN)/python -m sphinx -q -W --keep-going -d docs/_build/doctrees docs docs/_build/html

# Warnings are no errors there: old libraries warn of what they find beside them.
oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest -W default -p no:cacheprovider -n 0 $(TESTS)

$(OLDEST)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet uv
	$(OLDEST)/bin/uv pip compile --quiet --resolution lowest-direct --python $(OLDEST)/bin/python --extra test setup.cfg \
	  --output-file $(OLDEST)/lowest.txt
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --requirement $(OLDEST)/lowest.txt
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --no-deps --editable .
	touch $@

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

$(VENV)/installed-docs: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build *.egg-info docs/_build docs/examples docs/gallery/runs
