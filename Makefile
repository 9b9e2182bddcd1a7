# Every target works in a fresh clone with only Python 3.10 to 3.13 and make: the virtual environment is made on first use.
#   make PYTHON=/path/to/python3.11 ...   chooses the Python      make VENV=/elsewhere ...   chooses the environment
.DEFAULT_GOAL := help

VENV ?= .venv
VENV_OLDEST ?= .venv-oldest
BIN := $(VENV)/bin
PYTHON ?= $(call first_python,10,13,python3.12 python3.11 python3.13 python3.10 python3 python)
PYTHON_OLDEST ?= $(call first_python,10,12,python3.10 python3.11 python3.12 python3)
WORKERS ?= 2
export TF_CPP_MIN_LOG_LEVEL ?= 3
unexport PYTHONDONTWRITEBYTECODE # each of many processes would compile all modules anew

# The first of the given commands that is a Python 3.<low> to 3.<high> able to make virtual environments.
usable = import ensurepip, sys, venv; sys.exit(not (3, $(1)) <= sys.version_info[:2] <= (3, $(2)))
first_python = $(shell for python in $(3); do "$$python" -c "$(call usable,$(1),$(2))" >/dev/null 2>&1 && { echo "$$python"; break; }; done)

# Tests of captures that another machine made, and of bugs that must come on every processor.
NAMED := sample_runs|trained_here|from bugs|in_process
ELSEWHERE = $(shell grep -rlE "$(NAMED)" tests --include="test_*.py")
KERNELS := ONEDNN_MAX_CPU_ISA=SSE41 TF_ENABLE_ONEDNN_OPTS=0

.PHONY: help docs demo test test-fast test-all coverage test-kernels snapshots screenshots test-oldest lint format sample-runs usual-list benchmarks clean

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

demo: $(VENV)/.installed ## train a small model into a NaN, replay it and name the op
	@$(BIN)/nanreplay demo

test: $(VENV)/.installed ## run the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

test-fast: $(VENV)/.installed ## run the tests of the inner loop, under a minute
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS) tests/unit

test-all: $(VENV)/.installed ## run the tests, the slow ones too
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "" $(ARGS)

coverage: $(VENV)/.installed ## run the tests and say which lines and branches they reach
	rm -rf build/coverage
	-$(BIN)/python -m coverage run -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --sort=-miss
	$(BIN)/python docs/coverage_table.py

test-kernels: $(VENV)/.installed ## run the tests of captures with kernels of other processors
	@for kernels in $(KERNELS); do echo "== $$kernels" && \
	  env $$kernels $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS) $(ELSEWHERE) \
	  || exit 1; done

screenshots: $(VENV)/.installed ## draw the pictures of the documents anew, from real replays
	$(BIN)/python docs/screenshots.py $(ARGS)

snapshots: $(VENV)/.installed ## draw the pictures of the terminal interface for its tests anew
	$(BIN)/python -m pytest tests/tui --snapshot-update -m "" $(ARGS)

test-oldest: $(VENV_OLDEST)/.installed ## run the tests with TensorFlow 2.18 and Keras 3.6
	$(VENV_OLDEST)/bin/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

lint: $(VENV)/.installed ## check style, types and the order of the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed ## put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sample-runs: $(VENV)/.installed ## train the sample runs again
	$(BIN)/python sample_runs/regenerate.py

usual-list: $(VENV)/.installed ## write docs/usual-list.md from the sample runs
	$(BIN)/python docs/usual_list.py

benchmarks: $(VENV)/.installed ## measure what the documents quote
	@for script in overhead_paired overhead memory many_fits dump scale info open logs triage bisect_time; do echo "== $$script" && $(BIN)/python benchmarks/$$script.py || exit 1; done

docs: $(VENV)/.installed ## build the documents as a site in build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file .mkdocs.yml

clean: ## remove environments and caches
	rm -rf $(VENV) $(VENV_OLDEST) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find nanreplay tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "nanreplay needs Python 3.10 to 3.13 with venv; none found. Say which: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	"$(PYTHON)" -c "$(call usable,10,13)" || { echo "$(PYTHON) is not Python 3.10 to 3.13 with venv." >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

$(VENV_OLDEST)/.installed: pyproject.toml
	@test -n "$(PYTHON_OLDEST)" || { echo "TensorFlow 2.18 needs Python 3.10 to 3.12 with venv; none found. Say which: make PYTHON_OLDEST=/path/to/python3.11" >&2; exit 1; }
	test -x $(VENV_OLDEST)/bin/python || "$(PYTHON_OLDEST)" -m venv $(VENV_OLDEST)
	$(VENV_OLDEST)/bin/python -m pip install --quiet --editable ".[test]" "tensorflow==2.18.*" "keras==3.6.*"
	@touch $@
