"""Damage that SQLite does not notice by itself: what of it a start refuses, and what it has to let pass."""

import os
import struct
from pathlib import Path

import pytest

from takhin.broker.broker import Broker
from takhin.broker.sqlite_files import damaged_frame, leave_sum, sum_path, take_sum
from takhin.errors import StartError
from tests.broker.test_produce_paths import produce, run, running, settings, topic_of
from tests.torture.metadata_bed import MetadataBase, make_metadata

WAL_HEADER, FRAME = 32, 24 + 4096


@pytest.fixture(scope="module")
def killed() -> MetadataBase:
    return make_metadata(topics=6)


def frames_of(wal: bytes) -> list[bool]:
    """Of each frame whether it ends a commit."""
    starts = range(WAL_HEADER, len(wal), FRAME)
    return [struct.unpack_from(">I", wal, start + 4)[0] != 0 for start in starts]


def lost_from(directory: Path, base: MetadataBase, wal: bytes) -> int | None:
    (directory / "meta.db").write_bytes(base.files["meta.db"])
    (directory / "meta.db-wal").write_bytes(wal)
    return damaged_frame(str(directory / "meta.db"))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def test_a_damaged_frame_with_commits_behind_it(tmp_path: Path, killed: MetadataBase) -> None:
    wal = killed.files["meta.db-wal"]
    commits = frames_of(wal)
    assert commits[-1] and sum(commits) > 10
    # Behind the frame that ends the last commit but one there is only the last: nothing was ever written behind that.
    last = max(number for number, commit in enumerate(commits[:-1]) if commit)
    assert lost_from(tmp_path, killed, wal) is None
    for number in range(len(commits)):
        for place in (0, 8, 16, 24, 2000, FRAME - 1):
            lost = lost_from(tmp_path, killed, flipped(wal, WAL_HEADER + number * FRAME + place))
            if number >= last:
                assert lost is None, (number, place)
            elif place >= 24 or number + 1 < last:
                assert lost == number, (number, place)


def test_a_damaged_header(tmp_path: Path, killed: MetadataBase) -> None:
    wal = killed.files["meta.db-wal"]
    for place in range(WAL_HEADER):
        assert lost_from(tmp_path, killed, flipped(wal, place)) == 0, place


def test_a_torn_commit_that_begins_with_an_older_one_s_header(tmp_path: Path, killed: MetadataBase) -> None:
    """The bytes that tell of a commit may lie in another sector than the rest of their header."""
    wal = killed.files["meta.db-wal"]
    commits = frames_of(wal)
    for number in range(max(number for number, commit in enumerate(commits[:-1]) if commit) + 1, len(commits)):
        at = WAL_HEADER + number * FRAME
        torn = wal[: at + 4] + (7).to_bytes(4, "big") + wal[at + 8 :]
        assert lost_from(tmp_path, killed, torn) is None


def test_a_wal_that_was_cut(tmp_path: Path, killed: MetadataBase) -> None:
    """What is not there proves nothing."""
    wal = killed.files["meta.db-wal"]
    for size in [*range(40), *range(40, len(wal), 1000)]:
        assert lost_from(tmp_path, killed, wal[:size]) is None
        assert lost_from(tmp_path, killed, wal[:size] + bytes(3 * FRAME)) is None


def test_frames_of_an_older_wal_prove_nothing(tmp_path: Path, killed: MetadataBase) -> None:
    """After a checkpoint the WAL begins again from its beginning, with another salt."""
    wal = bytearray(killed.files["meta.db-wal"])
    salts = wal[16:24]
    other = make_metadata(seed=2, topics=6).files["meta.db-wal"]
    assert other[16:24] != salts
    mixed = other[: WAL_HEADER + 3 * FRAME] + bytes(wal[WAL_HEADER + 3 * FRAME :])
    assert lost_from(tmp_path, killed, mixed) is None


def test_the_sum_of_a_stop_is_compared_once(tmp_path: Path) -> None:
    path = str(tmp_path / "meta.db")
    (tmp_path / "meta.db").write_bytes(b"pages" * 1000)
    assert take_sum(path)
    leave_sum(path)
    (tmp_path / "meta.db").write_bytes(b"pages" * 999 + b"paqes")
    assert not take_sum(path) and not take_sum(path)
    (tmp_path / "meta.db").write_bytes(b"pages" * 1000)
    assert take_sum(path)
    assert not os.path.exists(sum_path(path))


def refusal(directory: Path) -> str:
    async def start() -> str:
        with pytest.raises(StartError) as caught:
            await Broker(settings(directory)).start()
        return str(caught.value)

    return run(start())


async def live(directory: Path) -> None:
    async with running(directory) as broker:
        await topic_of(broker)
        await produce(broker, b"one", acks=-1)


def test_a_database_that_rotted_while_nothing_ran(tmp_path: Path) -> None:
    run(live(tmp_path))
    path = tmp_path / "meta.db"
    # The end of a page, where its rows begin.
    path.write_bytes(flipped(path.read_bytes(), 3 * 4096 - 1))
    assert "checksum" in refusal(tmp_path)


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_files_that_a_new_database_would_not_know(tmp_path: Path, how: str) -> None:
    """Their topic's id would be given out again, and its records with it."""
    run(live(tmp_path))
    path = tmp_path / "meta.db"
    path.unlink()
    os.unlink(sum_path(str(path)))
    if how == "empty":
        path.touch()
    assert "holds topics" in refusal(tmp_path)
    assert (tmp_path / "topics" / "1" / "0" / f"{0:020d}.log").stat().st_size > 49


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o640), (0o077, 0o600)])
def test_the_database_is_for_owner_and_group_alone(tmp_path: Path, umask: int, mode: int) -> None:
    """So are the files that SQLite makes beside it."""
    before = os.umask(umask)
    try:
        async def scenario() -> None:
            async with running(tmp_path):
                modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("meta.db*")}
                assert set(modes) >= {"meta.db", "meta.db-wal"} and set(modes.values()) == {mode}

        run(scenario())
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o007 for path in tmp_path.rglob("*")} == {0}
