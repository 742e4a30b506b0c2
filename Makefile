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

.PHONY: help venv build dev debug annotate proto docs run test secured asan bench bench-cpp clean
.DEFAULT_GOAL := help

help:
	@echo "make run       start the broker on 127.0.0.1:9092 with its data in ./data"
	@echo "make test      run the test suite (PYTEST_ARGS='-k name' for a part, TEST_JOBS=n)"
	@echo "                TAKHIN_TEST_FRONT=grpc or fast: all of it on that front; the RPC tests else run on each"
	@echo "make secured   the tests of the RPCs on brokers with TLS and authentication"
	@echo "make conformance  gRPC clients in Python, C++, Go, Node, Java, and tools, against both fronts (ARGS=...)"
	@echo "make bench     measure: handlers in process, then load against a running broker"
	@echo "make bench-cpp compile the C++ load clients of python -m bench.fronts"
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

# What the fast front is linked with: once it is there, "make build" has more to build.
NGHTTP2 := build/.nghttp2-$(shell pkg-config --modversion libnghttp2 2>/dev/null || echo none)
$(NGHTTP2):
	@mkdir -p build && rm -f build/.nghttp2-* && touch $@

build/.built: $(VENV)/.installed $(SOURCES) $(NGHTTP2)
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

# gRPC clients of several languages against both fronts: ARGS='--client go --front fast --allow-missing'.
.PHONY: conformance
conformance: build
	$(BIN)/python -m tests.conformance $(ARGS)

bench: build
	$(BIN)/python -m pytest bench/micro.py -q --benchmark-columns=median,mean,stddev,rounds,iterations
	$(BIN)/python -m bench.load
	$(BIN)/python -m bench.groups
	$(BIN)/python -m bench.python_client

# The clients and the bare server of bench.fronts; needs libgrpc++-dev, protobuf-compiler-grpc and libnghttp2-dev.
BENCH := build/bench
BENCH_CXX := $(CXX) -std=c++17 -O2 -Wall -Wextra -I$(BENCH)
BENCH_GENERATED := $(BENCH)/takhin.pb.o $(BENCH)/takhin.grpc.pb.o

bench-cpp: $(BENCH)/raw_client $(BENCH)/load_client $(BENCH)/bare_server

$(BENCH)/takhin/v1/takhin.pb.cc: proto/takhin/v1/takhin.proto
	@mkdir -p $(BENCH)
	protoc -Iproto --cpp_out=$(BENCH) --grpc_out=$(BENCH) --plugin=protoc-gen-grpc=$$(command -v grpc_cpp_plugin) $<
$(BENCH)/takhin/v1/takhin.grpc.pb.cc: $(BENCH)/takhin/v1/takhin.pb.cc

$(BENCH)/%.o: $(BENCH)/takhin/v1/%.cc
	$(BENCH_CXX) -c -o $@ $<

$(BENCH)/raw_client: $(wildcard bench/cpp/raw_*) bench/cpp/common.h
	@mkdir -p $(BENCH)
	$(BENCH_CXX) -o $@ bench/cpp/raw_client.cc $$(pkg-config --cflags --libs libnghttp2)

$(BENCH)/load_client $(BENCH)/bare_server: $(BENCH)/%: bench/cpp/%.cc bench/cpp/common.h $(BENCH_GENERATED)
	$(BENCH_CXX) -o $@ $< $(BENCH_GENERATED) $$(pkg-config --cflags --libs grpc++ protobuf) -pthread

clean:
	rm -rf build $(VENV) *.egg-info
	find takhin -name '*.so' -delete
