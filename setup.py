"""The extension modules and how they are compiled; everything else is in pyproject.toml.

Switches, as environment variables:
  TAKHIN_DEBUG=1     without optimization, with symbols
  TAKHIN_SANITIZE=1  with checks of addresses and of undefined behaviour (see `make asan`)
  TAKHIN_ANNOTATE=1  Cython's annotated HTML beside the C in build/cython
"""

import os
import subprocess
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("TAKHIN_DEBUG") == "1"
SANITIZE = os.environ.get("TAKHIN_SANITIZE") == "1"
ANNOTATE = os.environ.get("TAKHIN_ANNOTATE") == "1"

MODULES = [
    "takhin.counters",
    "takhin.clock",
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
    "takhin.broker.following",
    "takhin.rpc.current",
    "takhin.rpc.arrival",
    "takhin.cli.format",
    "takhin.cli.lines",
]
# Built where pkg-config finds libnghttp2 (Debian: libnghttp2-dev, pkg-config): without it there is no fast front.
FAST_MODULES = [
    "takhin.rpc.fast.grpc_text", "takhin.rpc.fast.header_block", "takhin.rpc.fast.outgoing", "takhin.rpc.fast.hub",
    "takhin.rpc.fast.served", "takhin.rpc.fast.waiting", "takhin.rpc.fast.arriving", "takhin.rpc.fast.call",
    "takhin.rpc.fast.connection", "takhin.rpc.fast.produce_stream", "takhin.rpc.fast.serving",
]


def flags_of(package: str, which: str) -> list[str] | None:
    """What pkg-config says; None: the package is not there."""
    try:
        found = subprocess.run(["pkg-config", which, package], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.split()


C_FLAGS = ["-O0", "-g"] if DEBUG else ["-O3", "-g1"]
LINK_FLAGS: list[str] = []
if SANITIZE:
    # The first report ends the process: what runs it can't overlook it.
    LINK_FLAGS = ["-fsanitize=address,undefined"]
    C_FLAGS = ["-O1", "-g", "-fno-omit-frame-pointer", *LINK_FLAGS, "-fno-sanitize-recover=undefined"]

NGHTTP2_C_FLAGS = flags_of("libnghttp2", "--cflags")
NGHTTP2_LINK_FLAGS = flags_of("libnghttp2", "--libs")


def extension(name: str, c_flags: list[str], link_flags: list[str]) -> Extension:
    return Extension(
        name, [name.replace(".", "/") + ".pyx"], extra_compile_args=C_FLAGS + c_flags,
        extra_link_args=LINK_FLAGS + link_flags)


EXTENSIONS = [extension(name, [], []) for name in MODULES]
if NGHTTP2_C_FLAGS is not None and NGHTTP2_LINK_FLAGS is not None:
    EXTENSIONS += [extension(name, NGHTTP2_C_FLAGS, NGHTTP2_LINK_FLAGS) for name in FAST_MODULES]
else:
    print(
        "the fast front is not built: pkg-config finds no libnghttp2 (Debian: libnghttp2-dev, pkg-config)",
        file=sys.stderr)

setup(
    ext_modules=cythonize(
        EXTENSIONS,
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
