"""What the house rules are read from: the tree's files, modules and the lines of Cython source."""

import functools
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "takhin"

CYTHON = (".pyx", ".pxd")
# By make docs, of the commands' help and of the settings.
MADE = {"docs/cli.md", "docs/configuration.md", "deploy/takhin.toml"}


def missing(what: str) -> None:
    """Something a rule needs is not here: a failure in CI, elsewhere the test is skipped."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing")
    pytest.skip(f"{what} is missing")


def git(*arguments: str) -> str:
    """What git prints in the tree; without git or a repository the test is skipped, or fails in CI."""
    try:
        run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        missing("git, or the repository")
    return run.stdout.decode()


@functools.cache
def files() -> list[Path]:
    """Every file that is tracked, or would be with the next commit."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return sorted({path for name in listed if name and (path := ROOT / name).is_file()})


def is_generated(path: Path) -> bool:
    return path.parent == PACKAGE / "v1" and path.name != "__init__.py" or name_of(path) in MADE


def name_of(path: Path) -> str:
    """For messages: the path from the top of the tree."""
    return str(path.relative_to(ROOT))


def modules(*suffixes: str) -> list[Path]:
    """The package's source files with these suffixes."""
    return sorted(path for path in PACKAGE.rglob("*") if path.suffix in suffixes and "__pycache__" not in path.parts)


@dataclass(frozen=True)
class Line:
    """A logical line of Cython: brackets closed, strings emptied, comments and line breaks gone."""

    number: int
    indent: int
    text: str


_TOKEN = re.compile(
    r"""
    (?P<string>[rbuf]{0,2}(?:\"\"\"(?:\\.|[^\\])*?\"\"\"|'''(?:\\.|[^\\])*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
    | (?P<comment>\#[^\n]*)
    | (?P<joined>\\\n)
    | (?P<newline>\n)
    | (?P<other>[A-Za-z0-9_]+|.)
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)


def logical_lines(text: str) -> Iterator[Line]:
    """Cython's own tokenizer is not made for this, and Python's refuses some of what Cython allows."""
    number = first = 1
    depth = 0
    collected = ""
    for token in _TOKEN.finditer(text):
        piece = token.group()
        if token["string"]:
            collected += '""'
        elif token["joined"] or (token["newline"] and depth):
            collected += " "
        elif token["newline"]:
            yield from _line(first, collected)
            collected = ""
        elif token["other"]:
            depth += (piece in "([{") - (piece in ")]}")
            collected += piece
        number += piece.count("\n")
        if not collected.strip():
            first = number
    yield from _line(first, collected)


def _line(number: int, text: str) -> Iterator[Line]:
    if text.strip():
        yield Line(number, len(text) - len(text.lstrip()), " ".join(text.split()))
