# make ablate   environment, install, and the embedded demonstration (results/demo)
# make test     environment, install, static checks, the whole test suite, and two of the bugs that it must find
# make mutants  all of these bugs, planted one at a time into a copy (results/mutations)
# make reproduce-small   two seeds, three epochs of the paper's question, beside results/paper (ten minutes of two cores)
# make reliability   kills, full disks, damaged files, many runs, fuzzed parsers: all of what make test tries a share of
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
# Extra arguments for pip, such as an index that holds CPU builds of torch.
PIP_FLAGS ?=
# Extra arguments for the ablation of reproduce-small, such as --data-dir DIR; without it the archive is downloaded.
ABLATE_FLAGS ?=

.PHONY: ablate test mutants reliability reproduce-small lint kernels clean
.DELETE_ON_ERROR:

ablate: $(READY)
	$(BIN)/python -m lrbench.ablate

test: $(READY)
	$(MAKE) --jobs=2 lint kernels
	$(BIN)/python -m pytest -n 3 --dist worksteal
	$(BIN)/python -m tests.mutations --share 2

mutants: $(READY)
	$(BIN)/python -m tests.mutations --out results/mutations

reliability: $(READY)
	$(BIN)/python -m tests.reliability --out results/reliability

reproduce-small: $(READY)
	$(BIN)/python -m lrbench.ablate --preset reproduce-small --jobs 2 $(ABLATE_FLAGS)
	$(BIN)/python -m benchmarks.reproduce results/reproduce-small results/paper

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# So that tests that run side by side find them in the cache.
kernels: $(READY)
	$(BIN)/python -m tests.compile_kernels

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"lrbench needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}: name another with PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[asv,test,lint]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .asv
