"""Cython: cimport and never include, every cdef function says what it does with exceptions, classes are final, each
module has its .pxd and .pyi, and nothing has a twin in plain Python.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from .source import CYTHON, PACKAGE, ROOT, Line, logical_lines, missing, modules, name_of
from .test_imports import cython_imports

# Classes that are meant to be subclassed: "takhin.log.files.Files": "why".
NOT_FINAL: dict[str, str] = {
    "takhin.broker.following.Target": "what a Follower knows of a call",
    "takhin.outcome.Waiter": "calls and streams of the fast front are told as one",
    "takhin.rpc.fast.served.Sink": "the half of a ProduceStream that calls know, which knows calls itself",
    "takhin.rpc.fast.hub.Link": "the half of a Connection that calls know, which the connection knows itself",
}

# Functions that return these can't state an exception value: Cython refuses it.
PYTHON_TYPES = {
    "object", "bytes", "bytearray", "memoryview", "str", "list", "tuple", "dict", "set", "frozenset", "type", "slice",
    "range", "complex",
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


# Functions.


def functions(lines: Iterator[Line]) -> Iterator[tuple[int, str, str, str]]:
    """(line, return type, name, what follows the parameters) of each cdef and cpdef function.

    Not those in `cdef extern` blocks, which are C's and noexcept unless they say otherwise.
    """
    extern: int | None = None  # the indent of the block we are in
    block: int | None = None  # the same for `cdef:`
    for line in lines:
        if extern is not None and line.indent > extern:
            continue
        extern = line.indent if re.match(r"cdef extern from\b", line.text) else None
        if block is not None and line.indent <= block:
            block = None
        if re.fullmatch(r"cdef( (public|readonly|api|inline|nogil))* ?:", line.text):
            block = line.indent
            continue
        text = line.text if block is None or line.indent <= block else f"cdef {line.text}"
        declaration = re.fullmatch(r"c?p?def (?:(?:inline|public|readonly|api) )*(.*)", text)
        if declaration is None or not text.startswith(("cdef", "cpdef")):
            continue
        if found := function(declaration[1]):
            yield line.number, *found


def function(declaration: str) -> tuple[str, str, str] | None:
    """(return type, name, tail) of "int f(int x) except -1:"; None for what declares no function."""
    if re.match(r"(packed |fused )*(class|struct|union|enum|cppclass|extern)\b", declaration):
        return None
    before = ""
    if declaration.startswith("("):  # the return type is a C tuple
        end = closing(declaration, 0)
        before, declaration = declaration[:end], declaration[end:]
    match = re.match(r"([^=(]*?)(\w+) ?\((?! ?\*)", declaration)
    if match is None:
        return None
    return (before + match[1]).strip(), match[2], declaration[closing(declaration, match.end() - 1):].strip()


def closing(text: str, opening: int) -> int:
    """The place behind the parenthesis that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place + 1
    return len(text)


def class_names() -> set[str]:
    """All cdef classes: functions that return one return a Python object."""
    return {name for path in modules(*CYTHON) for _, name, _ in classes(logical_lines(path.read_text()))}


def silent_functions(text: str, objects: set[str]) -> list[str]:
    """The functions that state neither except nor noexcept, though they could."""
    found = []
    for line, returned, name, tail in functions(logical_lines(text)):
        plain = re.sub(r"\b(const|volatile)\b|\[.*\]$", "", returned).strip()
        if plain in PYTHON_TYPES | objects:
            continue
        if not returned:
            found.append(f"line {line}: {name} states no return type")
        elif not re.match(r"(nogil )?(noexcept|except)\b", tail):
            found.append(f"line {line}: {name} states neither except nor noexcept")
    return found


@pytest.mark.parametrize("path", modules(*CYTHON), ids=name_of)
def test_functions_state_what_they_do_with_exceptions(path: Path) -> None:
    assert not silent_functions(path.read_text(), class_names())


@pytest.mark.parametrize("text", [
    "cdef int f(int x):\n    return x",
    "cdef int f(int x) nogil",
    "cdef inline bint f(const uint8_t* at, size_t size=(1 + 2)) nogil:\n    return 1",
    "cpdef int f():\n    pass",
    "cdef f():\n    pass",
    "cdef void f(\n    int x,  # noexcept\n) nogil:\n    pass",
    "cdef uint8_t* f(): # except NULL\n    pass",
    "cdef object* f()",
    "cdef (int, int) f(int x):\n    pass",
    "cdef class A:\n    cdef int size\n    cdef int f(self)",
    "cdef:\n    int x\n    int f(int y)",
    'cdef extern from "x.h":\n    int g(int)\ncdef int f(int x)',
    "cdef const unsigned char* f(int (*callback)(int) noexcept)",
    "cdef int f(int x) with gil:\n    pass",
])
def test_a_silent_function_is_found(text: str) -> None:
    (found,) = silent_functions(text, {"Segment"})
    assert ": f states " in found


@pytest.mark.parametrize("text", [
    "cdef int f(int x) except -1:\n    return x",
    "cdef int f(int x) except? -1 nogil",
    "cdef void f(int x) except *",
    "cdef int f(\n    int x,\n) noexcept nogil:\n    return x",
    "cdef int f(int x) nogil except -1",
    "cdef object f()", "cdef bytes f(int x):\n    pass", "cdef Segment f(int x)", "cdef list[int] f(int x)",
    "cdef int x = g(3)", "cdef uint8_t* at = <uint8_t*>g(data)", "cdef int (*callback)(int) noexcept nogil",
    "cdef class A(B):\n    cdef int x\n    def __cinit__(self):\n        f(3)", "cdef struct S:\n    int x",
    "cdef enum:\n    A = (1 << 2)", "cdef (int, int) pair",
    'cdef extern from "x.h" nogil:\n    int g(int)\n\n    void h()', "def f(x):\n    pass", "cdef bytes data = b'f()'",
    'cdef extern from *:\n    """\n    static int f(int x) { return x; }\n    """\n    int f(int x)',
])
def test_what_states_it_is_let_through(text: str) -> None:
    assert silent_functions(text, {"Segment"}) == []


# include.


def includes(text: str) -> list[int]:
    return [line.number for line in logical_lines(text) if re.match(r'include ?""', line.text)]


@pytest.mark.parametrize("path", modules(*CYTHON), ids=name_of)
def test_nothing_is_included(path: Path) -> None:
    assert not includes(path.read_text())


def test_an_include_is_found() -> None:
    assert includes('x = 1\ninclude "wire.pxi"\n# include "a"\ninclude = 3\n') == [2]


# Classes.


def classes(lines: Iterator[Line]) -> Iterator[tuple[int, str, bool]]:
    """(line, name, whether it is decorated as final) of each cdef class that has a body."""
    decorators: set[str] = set()
    for line in lines:
        if line.text.startswith("@"):
            decorators.add(line.text)
            continue
        if match := re.match(r"cdef (?:public |api )*class (\w+)\b.*:", line.text):
            yield line.number, match[1], "@cython.final" in decorators
        decorators = set()


def open_classes(*texts: str) -> set[str]:
    """Of one module's .pyx and .pxd, the classes that neither decorates as final: either is enough for Cython."""
    found: dict[str, bool] = {}
    for text in texts:
        for _, name, final in classes(logical_lines(text)):
            found[name] = found.get(name, False) or final
    return {name for name, final in found.items() if not final}


@pytest.mark.parametrize("path", modules(".pyx"), ids=name_of)
def test_classes_are_final(path: Path) -> None:
    texts = [each.read_text() for each in (path, path.with_suffix(".pxd")) if each.exists()]
    listed = {name.rpartition(".")[2] for name in NOT_FINAL if name.rpartition(".")[0] == module_name(path)}
    assert open_classes(*texts) == listed


def test_an_open_class_is_found() -> None:
    final = "cimport cython\n\n@cython.final\ncdef class A:\n    pass\n"
    assert open_classes(final) == set()
    assert open_classes(final + "cdef class B:\n    pass\n") == {"B"}
    assert open_classes("cdef class A:\n    cdef int x\n", final) == set()
    assert open_classes("@cython.freelist(8)\ncdef class A(B):\n    pass\n") == {"A"}
    assert open_classes("cdef class A\n") == set(), "a forward declaration"


# Modules.


def listed_modules() -> list[str]:
    """MODULES and FAST_MODULES of setup.py."""
    found = {
        node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and "MODULES" in node.targets[0].id}
    assert set(found) == {"MODULES", "FAST_MODULES"}
    assert all(name.startswith("takhin.rpc.fast.") for name in found["FAST_MODULES"])
    return found["MODULES"] + found["FAST_MODULES"]


def test_every_extension_is_listed() -> None:
    assert sorted(listed_modules()) == sorted(module_name(path) for path in modules(".pyx"))


def wrong_siblings(source: Path) -> list[str]:
    """What is missing or too much beside a .pyx."""
    wanted = [source.with_suffix(suffix) for suffix in (".pyx", ".pxd", ".pyi")]
    found = [f"no {path.name}" for path in wanted if not path.exists()]
    twin = source.with_suffix(".py")
    return [*found, f"{twin.name} is a twin"] if twin.exists() else found


@pytest.mark.parametrize("name", listed_modules())
def test_an_extension_has_its_declarations_and_no_twin(name: str) -> None:
    assert not wrong_siblings(ROOT / (name.replace(".", "/") + ".pyx"))


def test_a_twin_is_found(tmp_path: Path) -> None:
    for name in "a.pyx", "a.pxd", "a.py":
        (tmp_path / name).touch()
    assert wrong_siblings(tmp_path / "a.pyx") == ["no a.pyi", "a.py is a twin"]


# Stubs.


def public(names: Iterator[str] | set[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def stub_names(body: list[ast.stmt]) -> set[str]:
    """What a stub's body declares, without its imports, and without its protocols: those are for type checkers only."""
    names = set()
    for node in body:
        if isinstance(node, ast.ClassDef):
            if not any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
                names.add(node.name)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return public(names)


def module_names(module: ModuleType, imported: set[str]) -> set[str]:
    return public(set(vars(module)) - imported)


def differences(stub: str, module: ModuleType, imported: set[str]) -> list[str]:
    """Where a stub and the module it describes don't agree. `imported`: names that the module's source imports."""
    tree = ast.parse(stub)
    stated, there = stub_names(tree.body), module_names(module, imported)
    found = [f"{name} is not in the stub" for name in there - stated]
    found += [f"{name} is only in the stub" for name in stated - there]
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in stated & there:
            described = getattr(module, node.name)
            members = stub_names(node.body)
            found += [f"{node.name}.{name} is not in the stub" for name in public(set(vars(described))) - members]
            found += [f"{node.name}.{name} is only in the stub" for name in members - set(dir(described))]
    return sorted(found)


@pytest.mark.parametrize("path", modules(".pyx"), ids=name_of)
def test_stubs_tell_what_is_there(path: Path) -> None:
    try:
        module = importlib.import_module(module_name(path))
    except ModuleNotFoundError:
        if path.parent != PACKAGE / "rpc" / "fast":
            raise
        missing("the fast front, as libnghttp2-dev or pkg-config was when this was built,")
    assert not inspect.getsourcefile(module), "compiled, not plain Python"
    package = module.__name__.rpartition(".")[0]
    imported = {name.rpartition(".")[2] for _, name in cython_imports(path.read_text(), package)}
    assert not differences(path.with_suffix(".pyi").read_text(), module, imported)


def test_a_wrong_stub_is_found() -> None:
    module = ModuleType("takhin.codec.sample")
    code = "import os\nLIMIT = 3\ndef read(): pass\nclass Batch:\n    size = 1\n    def close(self): pass\n"
    exec(code, vars(module))
    good = """
from typing import Protocol
class Source(Protocol):
    def read(self) -> bytes: ...
LIMIT: int
def read() -> None: ...
class Batch:
    size: int
    def close(self) -> None: ...
"""
    assert differences(good, module, {"os"}) == []
    assert differences(good, module, set()) == ["os is not in the stub"]
    bad = good.replace("LIMIT", "LIMITS").replace("close", "shut")
    assert differences(bad, module, {"os"}) == [
        "Batch.close is not in the stub", "Batch.shut is only in the stub", "LIMIT is not in the stub",
        "LIMITS is only in the stub",
    ]


def test_there_is_something_to_check() -> None:
    wire = (PACKAGE / "codec" / "wire.pyx").read_text()
    assert {"check_record", "check_utf8"} <= {name for _, _, name, _ in functions(logical_lines(wire))}
    assert len(modules(".pyx")) >= 10 and "Partition" in class_names()
