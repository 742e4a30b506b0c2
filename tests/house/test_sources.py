"""Files of a size that a reader can hold in the head, lines that fit, and nothing that only holds on one machine."""

import re
from pathlib import Path

import pytest

from .source import files, is_generated, name_of

MAX_FILE_LINES = 800
MAX_LINE_CHARS = 120

# Written by people, to be read by people; what tools write (go.sum) and data (.log, .hex) are not.
WRITTEN = {
    "", ".c", ".css", ".go", ".h", ".html", ".java", ".js", ".md", ".mod", ".proto", ".pxd", ".py", ".pyi", ".pyx",
    ".sh", ".toml", ".ts", ".xml", ".yaml", ".yml",
}
MEASURED = {".py", ".pyi", ".pyx", ".pxd"}


def written() -> list[Path]:
    """Files that people wrote: neither generated nor data."""
    return [
        path for path in files()
        if path.suffix in WRITTEN and not is_generated(path) and not {"golden", "corpus"} & set(path.parts)
    ]


def too_long(text: str, suffix: str) -> list[str]:
    """What is too long in a file."""
    lines = text.splitlines()
    found = [f"{len(lines)} lines"] if len(lines) > MAX_FILE_LINES else []
    if suffix in MEASURED:
        found += [f"line {number}: {len(line)} characters" for number, line in enumerate(lines, 1)
                  if len(line) > MAX_LINE_CHARS]
    return found


def test_files_and_lines_are_short() -> None:
    found = {name_of(path): too_long(path.read_text(), path.suffix) for path in written()}
    assert not {name: long for name, long in found.items() if long}


def test_what_is_too_long_is_found() -> None:
    assert too_long("\n" * 800, ".py") == []
    assert too_long("\n" * 801, ".md") == ["801 lines"]
    assert too_long("x" * 120 + "\n" + "x" * 121, ".pyx") == ["line 2: 121 characters"]
    assert too_long("x" * 121, ".md") == []


# Put together from halves, or this file would be found.
FORBIDDEN = [
    # Where packages come from is the installer's affair.
    *(re.escape("".join(halves)) for halves in [
        ("pypi", ".org"), ("files.pythonhosted", ".org"), ("registry.npmjs", ".org"), ("registry.yarnpkg", ".com"),
        ("proxy.golang", ".org"), ("sum.golang", ".org"), ("repo1.maven", ".org"), ("repo.maven.apache", ".org"),
        ("static.crates", ".io"), ("index.crates", ".io"), ("deb.debian", ".org"), ("rubygems", ".org"),
        ("--index", "-url"), ("--extra-index", "-url"), ("--trusted", "-host"), ("--find", "-links"),
    ]),
    # Paths of the machine that a file was written on.
    *(r"(?<![\w.~-])" + re.escape("".join(halves)) for halves in [
        ("/wo", "rk/"), ("/ro", "ot/"), ("/ho", "me/"), ("/Us", "ers/"), ("/opt/", "wheels"), ("/tmp/", "v/"),
        ("/tmp/", "brief"), ("/tmp/", "bash_jobs"),
    ]),
    re.escape("".join((".py", "env/"))),
]
_FORBIDDEN = re.compile("|".join(FORBIDDEN))


def told_of_one_machine(text: str) -> list[str]:
    """What in a text holds only on the machine it was written on, or names a package registry."""
    return [f"line {text.count(chr(10), 0, match.start()) + 1}: {match.group()}" for match in _FORBIDDEN.finditer(text)]


def test_nothing_holds_on_one_machine_only() -> None:
    found = {name_of(path): told_of_one_machine(path.read_text(errors="replace")) for path in files()}
    assert not {name: told for name, told in found.items() if told}


@pytest.mark.parametrize("text", [
    "https://" + "pypi" + ".org/simple", "PATH=" + "/ro" + "ot/.cache", "cd " + "/wo" + "rk/main",
    '"' + "/ho" + "me/me/x", "pip install --index" + "-url x", "x/.py" + "env/versions",
])
def test_what_holds_on_one_machine_is_found(text: str) -> None:
    (found,) = told_of_one_machine(f"first\n{text}")
    assert found.startswith("line 2: ")


@pytest.mark.parametrize("text", ["/data", "./wo" + "rk/x", "the network/", "/tmp/x", "/usr/bin/env", "a/home/b"])
def test_other_paths_are_let_through(text: str) -> None:
    assert told_of_one_machine(text) == []


def test_there_is_something_to_check() -> None:
    names = {name_of(path) for path in written()}
    assert {"setup.py", "Makefile", "takhin/config.py", "takhin/codec/wire.pyx"} <= names
    assert "takhin/v1/takhin_pb2.py" not in names
