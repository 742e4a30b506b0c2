"""Files that are read again when they change."""

from pathlib import Path

import pytest

from takhin.errors import StartError
from takhin.rpc.watched_files import WatchedFiles


def loaded(contents: list[bytes]) -> bytes:
    if contents[0].startswith(b"bad"):
        raise ValueError("it is bad")
    return contents[0]


def test_what_can_not_be_used_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    files = WatchedFiles([str(path)], loaded)
    assert files.current == b"one" and not files.check()
    path.write_bytes(b"bad!")
    assert not files.check() and not files.check() and files.current == b"one"
    path.unlink()
    assert not files.check() and files.current == b"one"
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 2
    path.write_bytes(b"second")
    assert files.check() and files.current == b"second"


def test_what_can_be_used_later_is_used_then(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Though the file stays as it is: a certificate that is not valid yet, say."""
    path = tmp_path / "file"
    path.write_bytes(b"one")
    problem = ""

    def load(contents: list[bytes]) -> bytes:
        if problem:
            raise ValueError(problem)
        return contents[0]

    files = WatchedFiles([str(path)], load)
    problem = "not before noon"
    path.write_bytes(b"second")
    assert not files.check() and not files.check() and files.current == b"one"
    problem = "another"
    assert not files.check()
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 2, "each is told once"
    problem = ""
    assert files.check() and not files.check() and files.current == b"second"


@pytest.mark.parametrize("gone", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["removed", "emptied"])
def test_what_lets_somebody_in_does_not_outlive_its_file(tmp_path: Path, gone) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"key")
    files = WatchedFiles([str(path)], loaded, b"nobody")
    told: list[bytes] = []
    files.on_change(lambda: told.append(files.current))
    gone(path)
    assert files.check() and files.current == b"nobody" and told == [b"nobody"]
    path.write_bytes(b"bad!")
    assert not files.check() and files.current == b"nobody"
    path.write_bytes(b"another")
    assert files.check() and files.current == b"another"


def test_at_the_start_it_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(StartError):
        WatchedFiles([str(tmp_path / "none")], loaded, b"nobody")
