# make run    set up what is missing, start the broker on 127.0.0.1:9092 with its data in ./data
# make test   set up what is missing, run the whole test suite
# make bench  micro benchmarks of the handlers, then load against a running broker
# make help   the rest

PYTHON3 ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
# Tests mostly wait: for disks, for processes, for timeouts. Two of them at once take half the time on two cores.
TEST_JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile
SOURCES := $(shell find takhin -name '*.pyx' -o -name '*.pxd') setup.py

.PHONY: help venv build dev debug annotate proto docs run test secured asan bench clean
.DEFAULT_GOAL := help

help:
	@echo "make run       start the broker on 127.0.0.1:9092 with its data in ./data"
	@echo "make test      run the test suite (PYTEST_ARGS='-k name' for a part, TEST_JOBS=n)"
	@echo "make secured   the tests of the RPCs on brokers with TLS and authentication"
	@echo "make bench     measure: handlers in process, then load against a running broker"
	@echo "make crash, groups, powercut, torn, rot, faults, diskfull, fuzz, mutants: break it on purpose (N=rounds SEED=n SECONDS=n)"
	@echo "make asan      the tests of the compiled parts on a build with sanitizers"
	@echo "make build     compile the extensions (after 'make -f Makefile.proto proto' when proto/ changed)"
	@echo "make docs      write docs/cli.md, docs/configuration.md and deploy/takhin.toml again, from the code"
	@echo "make debug     compile them without optimization, with symbols"
	@echo "make annotate  write Cython's annotated HTML to build/cython"
	@echo "make clean     remove everything that was built (not ./data)"

# The environment is made again when what it is made from changes.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON3) -c 'import sys; sys.exit("Takhin needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON3) -m venv $(VENV)
	@# The build's own requirements first: with them in place pip compiles the extensions here, not in a copy.
	$(BIN)/python -m pip install -q --disable-pip-version-check 'setuptools>=77,<90' 'cython>=3.1,<3.4'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -e '.[dev]'
	@touch $@

venv: $(VENV)/.installed

build/.built: $(VENV)/.installed $(SOURCES)
	$(BIN)/python setup.py -q build_ext --inplace --parallel 2
	@mkdir -p build && touch $@

build: build/.built
dev: build

debug: $(VENV)/.installed
	TAKHIN_DEBUG=1 $(BIN)/python setup.py -q build_ext --inplace --parallel 2 --force
	@mkdir -p build && touch build/.built

annotate: $(VENV)/.installed
	TAKHIN_ANNOTATE=1 $(BIN)/python setup.py -q build_ext --inplace --force
	@find build/cython -name '*.html'

proto:
	$(MAKE) -f Makefile.proto proto

# What is made of the code's own help, and of its settings.
docs: build
	$(BIN)/python -m takhin.cli.reference > docs/cli.md.new && mv docs/cli.md.new docs/cli.md
	$(BIN)/python -m takhin.cli.config_text > docs/configuration.md.new && mv docs/configuration.md.new docs/configuration.md
	$(BIN)/takhin config example > deploy/takhin.toml.new && mv deploy/takhin.toml.new deploy/takhin.toml

run: build
	$(BIN)/takhin-server --listen 127.0.0.1:9092 --data-dir ./data

test: build
	$(PYTEST) $(PYTEST_ARGS)

# The RPCs as they are in production; a share of it is in "make test" (tests/rpc/test_secured.py).
secured: build
	TAKHIN_TEST_SECURED=1 $(PYTEST) tests/rpc $(PYTEST_ARGS)

# Faults on purpose. N=rounds, SEED=number, SECONDS=at most so long; python -m tests.torture.NAME --help tells more.
TORTURE := crash groups powercut torn rot faults diskfull fuzz mutants
.PHONY: $(TORTURE)
$(TORTURE): build
	$(BIN)/python -m tests.torture.$@ $(if $(N),--count $(N)) $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS))

# The same and more on a build with sanitizers, in build/asan.
asan: build
	$(BIN)/python -m tests.torture.asan

bench: build
	$(BIN)/python -m pytest bench/micro.py -q --benchmark-columns=median,mean,stddev,rounds,iterations
	$(BIN)/python -m bench.load
	$(BIN)/python -m bench.groups
	$(BIN)/python -m bench.python_client

clean:
	rm -rf build $(VENV) *.egg-info
	find takhin -name '*.so' -delete
