"""Whatever the engine does to files, it does in takhin/log/files.pyx.

The metadata database is SQLite's own I/O. Right below both, faults are injected and operations recorded.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .source import PACKAGE, logical_lines, modules, name_of

SEAM = PACKAGE / "log" / "files.pyx"
ENGINE = ("broker", "log", "codec")

# What touches files, of modules that do other things too.
FUNCTIONS = {
    "os": {
        "access", "chmod", "chown", "copy_file_range", "fchmod", "fdatasync", "fdopen", "fstat", "fsync",
        "ftruncate", "link", "listdir", "lockf", "lstat", "makedirs", "mkdir", "open", "posix_fallocate", "pread",
        "preadv", "pwrite", "pwritev", "read", "readlink", "remove", "removedirs", "rename", "renames", "replace",
        "rmdir", "scandir", "sendfile", "stat", "statvfs", "symlink", "sync", "truncate", "unlink", "utime", "walk",
        "write",
    },
    "os.path": {"exists", "getsize", "isdir", "isfile", "islink", "lexists", "realpath"},
}
MODULES = {"fcntl", "glob", "io", "mmap", "pathlib", "shutil", "tempfile"}
CYTHON_MODULES = re.compile(r"(posix\.(fcntl|unistd|stat|mman|uio|dirent)|libc\.stdio)\b")
C_HEADERS = re.compile(r'cdef extern from "<(fcntl|unistd|stdio|dirent|sys/(uio|stat|mman|file|sendfile))\.h>"')
CYTHON_NAMES = re.compile(
    r"\b(?P<module>os(?:\.path)?)\.(?P<name>\w+)\(|(?<![\w.])(?P<plain>open)\("
)


def python_objections(text: str) -> Iterator[str]:
    """The lines of a module that touch files."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in MODULES:
                    yield f"line {node.lineno}: {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                known = FUNCTIONS.get(node.module or "", set())
                if (node.module or "").split(".")[0] in MODULES or alias.name in known:
                    yield f"line {node.lineno}: {node.module}.{alias.name}"
        elif isinstance(node, ast.Attribute):
            source = ast.unparse(node.value)
            if node.attr in FUNCTIONS.get(source, set()):
                yield f"line {node.lineno}: {source}.{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            yield f"line {node.lineno}: open"


def cython_objections(text: str) -> Iterator[str]:
    """The same of Cython."""
    for match in C_HEADERS.finditer(text):
        yield f"<{match[1]}.h>"
    for line in logical_lines(text):
        match = re.match(r"(?:from|import|cimport) ([\w.]+)", line.text)
        if match and (match[1].split(".")[0] in MODULES or CYTHON_MODULES.match(match[1])):
            yield f"line {line.number}: {match[1]}"
        for match in CYTHON_NAMES.finditer(line.text):
            if match["plain"] and not line.text.startswith("def "):
                yield f"line {line.number}: open"
            elif match["name"] in FUNCTIONS.get(match["module"], ()):
                yield f"line {line.number}: {match[0]}"


def objections(path: Path) -> list[str]:
    found = python_objections if path.suffix == ".py" else cython_objections
    return list(found(path.read_text()))


@pytest.mark.parametrize(
    "path",
    [each for each in modules(".py", ".pyx", ".pxd") if each.relative_to(PACKAGE).parts[0] in ENGINE],
    ids=name_of,
)
def test_only_the_seam_touches_files(path: Path) -> None:
    if path.with_suffix(".pyx") == SEAM:
        assert path.suffix == ".pxd" or objections(path), "the seam itself must be seen"
        return
    assert objections(path) == []


@pytest.mark.parametrize("text", [
    "import shutil", "from pathlib import Path", "from os import rename", "import os\nos.unlink('x')",
    "import os\nos.path.exists('x')", "with open('x') as f: pass", "import os\nremove = os.remove",
    "from os.path import isdir", "import fcntl",
])
def test_what_touches_files_is_found(text: str) -> None:
    assert len(list(python_objections(text))) == 1
    if "remove =" not in text:
        assert list(cython_objections(text)) or text in ("from os import rename", "from os.path import isdir")


@pytest.mark.parametrize("text", [
    "from posix.unistd cimport fsync", "from libc.stdio cimport fopen", 'cdef extern from "<fcntl.h>" nogil:',
    "    fd = open(name, flags)", "    os.fsync(fd)",
])
def test_what_touches_files_in_cython_is_found(text: str) -> None:
    assert len(list(cython_objections(text))) == 1


@pytest.mark.parametrize("text", [
    "import os\nos.path.join('a', 'b')", "import os\nos.strerror(5)", "files.open('x', 0)", "import os\nos.eventfd(0)",
    "self._files.unlink('x')", "import os\nos.getpid()",
])
def test_what_does_not_is_let_through(text: str) -> None:
    assert list(python_objections(text)) == [] == list(cython_objections(text))
