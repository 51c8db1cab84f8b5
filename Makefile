PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

PARALLEL := --numprocesses=2 --dist=loadfile
NO_BROWSER := --ignore=tests/tensorboard/test_dashboards.py
# With LIMIT, pytest skips the tests that would begin after so many seconds, and
# names them.
LIMITED = $(if $(LIMIT),-rs --seconds=$(LIMIT))

.PHONY: help setup train test test-long lint bench chaos fuzz
.PHONY: coverage browser results dist docs

help:
	@echo "make setup  create .venv with everything that is needed"
	@echo "make train  train dense, shrinking and narrow, and compare"
	@echo "make test   run the tests"
	@echo "make test-long  run the tests that take long"
	@echo "make browser  look at the TensorBoard dashboards, in Chromium"
	@echo "make lint   check format and style"
	@echo "make bench  run the benchmarks that need no recorded run"
	@echo "make chaos  kill trainings 120 times, and compare how they end"
	@echo "make fuzz   cut thousands of random networks and compare them"
	@echo "make docs   build the documentation as a site, in build/site"
	@echo "make results  write docs/results.md and the numbers of README.md"
	@echo "make dist   build wheel and source distribution in dist/"
	@echo "make coverage  cut every model of keras.applications; docs/coverage.md"

setup: $(STAMP)

# Reruns only when the requirements have changed.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

train: setup
	$(BIN)/python -m apps.quickstart

# A file at a time in each of two processes: most of a test is done on one core.
# The browser has a target of its own.
test: setup
	$(BIN)/python -m pytest $(PARALLEL) -m "not long" $(NO_BROWSER) $(LIMITED)

# What must take long: the same claims on more networks, and whole trainings.
test-long: setup
	$(BIN)/python -m pytest $(PARALLEL) -m long $(NO_BROWSER) $(LIMITED)

# Debian's Chromium; without it, and without leave to install it, the tests say
# that they are skipped.
browser: setup
	command -v chromium || timeout 300 sh -c "apt-get update --quiet=2 && \
	    apt-get install --yes --quiet=2 --no-install-recommends chromium" \
	    || true
	$(BIN)/python -m pytest -rs tests/tensorboard/test_dashboards.py

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

bench: setup
	$(BIN)/python tools/benchmarks/input_pipeline.py
	$(BIN)/python tools/benchmarks/step_overhead.py
	$(BIN)/python tools/benchmarks/step_overhead.py --method=targetprune
	$(BIN)/python tools/benchmarks/sdgp_step.py
	$(BIN)/python tools/benchmarks/reconfigure_resnet50.py
	$(BIN)/python tools/benchmarks/reconfigure_growth.py
	$(BIN)/python tools/benchmarks/log_overhead.py
	$(BIN)/python tools/benchmarks/channel_counts.py
	$(BIN)/python tools/benchmarks/dtype_policies.py
	$(BIN)/python tools/benchmarks/long_run.py
	$(BIN)/python tools/benchmarks/file_size.py
	$(BIN)/python tools/benchmarks/gradient_flow.py
	$(BIN)/python tools/benchmarks/backup.py

chaos: setup
	$(BIN)/python tools/chaos.py --kills=100 --worker_kills=20

fuzz: setup
	$(BIN)/python -m pytest tests/surgery/test_random_graphs.py --graphs=3000

coverage: setup
	$(BIN)/python tools/coverage.py
	$(BIN)/python tools/program_table.py

results: setup
	$(BIN)/python tools/results_page.py

dist: setup
	rm -rf build dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build \
	    --config-file tools/site/mkdocs.yml
