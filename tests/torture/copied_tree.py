"""A copy of the tree, to be compiled in another way; the usual build stays as it is."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "takhin", "tests", "bench", "proto", "docs", "deploy", "examples", "setup.py", "pyproject.toml", "README.md",
    "Makefile", "Dockerfile", ".dockerignore",
)
_LEFT_OUT = {"__pycache__", ".pytest_cache", ".hypothesis"}


def copy_tree(place: Path, change: Callable[[str, bytes], bytes] = lambda path, data: data) -> None:
    """Copy the sources to `place`, each as change(path in the tree, its bytes) has it, without what was compiled.

    A file that is the same already is not touched: what was compiled in `place` stays, as far as it is still right.
    """
    for source in _sources():
        path = str(source.relative_to(ROOT))
        target = place / path
        data = change(path, source.read_bytes())
        if not target.exists() or target.read_bytes() != data:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            shutil.copymode(source, target)


def _sources() -> list[Path]:
    found = []
    for name in COPIED:
        for directory, inside, files in os.walk(ROOT / name):
            inside[:] = [each for each in inside if each not in _LEFT_OUT]
            found += [Path(directory, each) for each in files if not each.endswith(".so")]
        if (ROOT / name).is_file():
            found.append(ROOT / name)
    return sorted(found)


def compile_tree(place: Path, **variables: str) -> None:
    """Compile the extensions of the copy, where they are not newer than their sources."""
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--parallel", "2"], cwd=place, check=True,
        env=os.environ | variables,
    )
