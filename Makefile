# `make demo` and `make test` are all a new machine needs; the environment is made in .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-all stress bench style install clean

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Python >= 3.11 is needed, %s is %d.%d; name another: make PYTHON=python3.12 ..." % (sys.executable, v[0], v[1]))'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python scripts/demo.py

style: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: style
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: test
	$(BIN)/python -m pytest -n 2 -m slow

# the engine's promises in full, by hand (about an hour); the tables are committed
stress: $(INSTALLED)
	$(BIN)/python tests/stress/kills.py --kills 50 --output docs/stress/kills.csv
	$(BIN)/python tests/stress/invariance.py --output docs/stress/invariance.csv
	$(BIN)/python tests/data/fuzzing.py 5000 | tee docs/stress/fuzz.txt

# the README's speed table (an hour and a half on two quiet cores; BENCH=--quick for a trial); on a GPU:
# make bench BENCH='--device cuda --minutes 8'
bench: $(INSTALLED)
	$(BIN)/python benchmarks/all.py $(BENCH)

clean:
	rm -rf .venv demo .pytest_cache .ruff_cache build src/*.egg-info
