"""Golden files pin the format on disk: files that exist must stay readable, so what once was pinned never changes.

tests/format/golden/SHA256SUMS lists them (`sha256sum * > SHA256SUMS`, without itself). A new format gets new files
beside the old ones.
"""

import hashlib
from pathlib import Path

from .source import ROOT, git, name_of

GOLDEN = ROOT / "tests" / "format" / "golden"
SUMS = "SHA256SUMS"


def listed(text: str) -> dict[str, str]:
    """name: SHA-256 of a SHA256SUMS file."""
    return {name: digest for digest, name in (line.split(None, 1) for line in text.splitlines())}


def mismatches(folder: Path) -> list[str]:
    """Where a folder and its SHA256SUMS differ."""
    sums = listed((folder / SUMS).read_text())
    there = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file() and path.name != SUMS}
    found = [f"{name} is not listed" for name in there.keys() - sums.keys()]
    found += [f"{name} is gone" for name in sums.keys() - there.keys()]
    for name in there.keys() & sums.keys():
        if hashlib.sha256(there[name].read_bytes()).hexdigest() != sums[name]:
            found.append(f"{name} has changed")
    return sorted(found)


def broken_promises(now: str, earlier: list[str]) -> list[str]:
    """Files that an earlier SHA256SUMS pinned and the present one does not pin to the same bytes."""
    sums = listed(now)
    return sorted({name for text in earlier for name, digest in listed(text).items() if sums.get(name) != digest})


def test_golden_files_are_as_listed() -> None:
    assert not mismatches(GOLDEN)
    assert listed((GOLDEN / SUMS).read_text()), "no golden file"


def test_golden_files_never_change() -> None:
    path = name_of(GOLDEN / SUMS)
    commits = git("log", "--full-history", "--format=%H", "--diff-filter=d", "--", path).split()
    assert not broken_promises((GOLDEN / SUMS).read_text(), [git("show", f"{commit}:{path}") for commit in commits])


def test_a_change_is_found(tmp_path: Path) -> None:
    for name, content in {"a.log": b"a", "b.log": b"b"}.items():
        (tmp_path / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in {"a.log": b"a", "b.log": b"b"}.items()}
    sums = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    (tmp_path / SUMS).write_text(sums)
    assert mismatches(tmp_path) == []
    (tmp_path / "a.log").write_bytes(b"A")
    (tmp_path / "c.log").write_bytes(b"c")
    (tmp_path / "b.log").unlink()
    assert mismatches(tmp_path) == ["a.log has changed", "b.log is gone", "c.log is not listed"]

    more = sums + f"{'0' * 64}  c.log\n"
    assert broken_promises(more, [sums, more]) == []
    assert broken_promises(sums, [more]) == ["c.log"]
    assert broken_promises(sums.replace(digests["a.log"], "f" * 64), ["", sums]) == ["a.log"]
