# Two commands for a newcomer: `make demo` and `make test`. Everything happens in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# The newest zarr wants a newer Python than the oldest that actstore runs on.
NEWEST_PYTHON ?= $(shell PYENV_VERSION=3.13 python3.13 -c 'import sys; print(sys.executable)' 2>/dev/null || echo $(PYTHON))
NEWEST = blake3 dask filelock fsspec google-crc32c hypothesis ml_dtypes 'moto[server]' numcodecs numpy obstore pydantic pytest pytest-timeout s3fs tensorstore xarray zarr zarrs

.PHONY: demo serve-demo serve-demo-check test test-s3 s3-server s3-server-stop test-slow test-kernels test-gpu test-newest fuzz readme examples docs wheel deploy-check coverage mutants lint bench recipes evidence clean

demo: $(VENV)/.runtime
	$(BIN)/python -m trainer.demo demo

# A training service for this machine alone, with a small store to train from. It prints the link to its page.
PORT ?= 8321
serve-demo: $(VENV)/.serve
	$(BIN)/python -m trainer.service_demo serve-demo --port $(PORT)

# The same, with a client in the place of a user: it submits a run, waits for it and opens its report.
serve-demo-check: $(VENV)/.serve
	$(BIN)/python -m trainer.service_demo --check

# A file on one process, in the order in which tests/conftest.py has them: the longest first.
test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

# Against a real S3 server (test-slow has those that take longest), Ceph's RADOS Gateway on the loopback (or another one: see tests/s3_server/server.py).
test-s3: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'real_s3 and not slow' -rs

# Such a server to try things with. It prints what its clients need; its data is kept in .s3-server/.
s3-server:
	S3_SERVER_DIR=$(CURDIR)/.s3-server bash tests/s3_server/start.sh

s3-server-stop:
	S3_SERVER_DIR=$(CURDIR)/.s3-server bash tests/s3_server/stop.sh

# The Triton kernels on a CPU: triton's interpreter is chosen when it is imported, so they have a process of their own.
test-kernels: $(VENV)/.dev
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/trainer/kernels/test_kernels.py

# What only a GPU can show, where there is one; the Triton kernels run on it then, too.
test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -rs tests/gpu tests/trainer/kernels/test_kernels.py

fuzz: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --cases 100000

# What reads and writes the format, on object stores too, with what is newest today; without torch, which two of the tests need.
test-newest:
	$(NEWEST_PYTHON) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --upgrade $(NEWEST)
	$(VENV)-newest/bin/python -m pip install --quiet --no-deps --editable .
	$(VENV)-newest/bin/python -c 'import sys, zarr, xarray; print("Python", sys.version.split()[0], "zarr", zarr.__version__, "xarray", xarray.__version__)'
	$(VENV)-newest/bin/python -m pytest tests/format tests/store/test_page_writer.py tests/store/test_store.py \
	  --ignore tests/format/test_stored_dtypes.py --ignore tests/format/test_token_ids.py

readme: $(VENV)/.dev
	$(BIN)/python -m tests.readme

examples: $(VENV)/.runtime
	PYTHON=$(BIN)/python bash examples/run.sh

# The site, into site/. It needs no network: no fonts and no scripts from elsewhere.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Wheel and sdist, into dist/; then the demo's steps from the wheel, in an environment and a folder of their own.
wheel: $(VENV)/.dev
	rm -rf build dist
	$(BIN)/python -m build --outdir dist
	PYTHON=$(PYTHON) bash .ci/wheel dist

# Dockerfile, compose file and shell scripts, without a container engine; what the image runs, in a fresh environment.
deploy-check: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'slow or not slow' tests/deploy

coverage: $(VENV)/.dev
	$(BIN)/python -m pytest --cov --cov-report=term --cov-report=html:coverage --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

# All of it takes hours: MUTANTS='actstore.format.layout*' names some.
MUTANTS ?=
mutants: $(VENV)/.mutants
	PATH="$(abspath $(BIN)):$$PATH" mutmut run $(MUTANTS) && PATH="$(abspath $(BIN)):$$PATH" mutmut results

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m tests.benchmarks

# The figures and tables of the source documents, in miniature: a report for each in recipes/.
RECIPES = multi_layer normalized stitching ground_truth across_layers
recipes: $(VENV)/.runtime
	$(BIN)/python -m trainer.recipes $(RECIPES) recipes

# The same with three seeds, for what the documents say of it: docs/evidence_tables.md and its figures.
evidence: $(VENV)/.dev
	$(BIN)/python -m trainer.recipes $(RECIPES) evidence --seeds 3
	$(BIN)/python -m tests.evidence evidence

$(VENV)/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "actstore needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.serve: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[serve]'
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

$(VENV)/.mutants: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mutants]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-newest demo serve-demo recipes evidence build dist site coverage mutants *.egg-info
