"""The extension modules and how they are compiled; everything else is in pyproject.toml.

Switches, as environment variables:
  TAKHIN_DEBUG=1     without optimization, with symbols
  TAKHIN_SANITIZE=1  with checks of addresses and of undefined behaviour (see `make asan`)
  TAKHIN_ANNOTATE=1  Cython's annotated HTML beside the C in build/cython
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("TAKHIN_DEBUG") == "1"
SANITIZE = os.environ.get("TAKHIN_SANITIZE") == "1"
ANNOTATE = os.environ.get("TAKHIN_ANNOTATE") == "1"

MODULES = [
    "takhin.counters",
    "takhin.gate",
    "takhin.outcome",
    "takhin.codec.crc32c",
    "takhin.codec.wire",
    "takhin.codec.batch",
    "takhin.codec.messages",
    "takhin.codec.transaction",
    "takhin.codec.wal",
    "takhin.client.messages",
    "takhin.client.record_batch",
    "takhin.log.files",
    "takhin.log.ring",
    "takhin.log.index",
    "takhin.log.producers",
    "takhin.log.segment",
    "takhin.log.partition",
    "takhin.log.hold",
    "takhin.log.journal",
    "takhin.log.reader",
    "takhin.log.timesearch",
    "takhin.log.sync",
    "takhin.broker.appending",
    "takhin.rpc.current",
    "takhin.rpc.arrival",
    "takhin.cli.format",
    "takhin.cli.lines",
]

C_FLAGS = ["-O0", "-g"] if DEBUG else ["-O3", "-g1"]
LINK_FLAGS: list[str] = []
if SANITIZE:
    # The first report ends the process: what runs it can't overlook it.
    LINK_FLAGS = ["-fsanitize=address,undefined"]
    C_FLAGS = ["-O1", "-g", "-fno-omit-frame-pointer", *LINK_FLAGS, "-fno-sanitize-recover=undefined"]

setup(
    ext_modules=cythonize(
        [
            Extension(name, [name.replace(".", "/") + ".pyx"], extra_compile_args=C_FLAGS, extra_link_args=LINK_FLAGS)
            for name in MODULES
        ],
        build_dir="build/cython",
        annotate=ANNOTATE,
        compiler_directives={
            "language_level": 3,
            # Bounds are checked on Python's own types; hot paths work on pointers, whose ends the code carries.
            "cdivision": True,
            "embedsignature": True,
        },
    ),
)
