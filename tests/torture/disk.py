"""What a disk may hold after a power cut, told from a recording of what was done to it.

The model is what POSIX allows, not what one filesystem does:

- What a file's completed sync covers is there: all that was recorded before the sync began. A sync that failed covers
  nothing, and what lay before it is never covered by a later one: the kernel may have marked those pages clean.
- Of everything else each block of 512 bytes holds one of the contents it had since the last sync, and the file has one
  of the sizes it had; where it grew and its blocks were not written, it holds zeros.
- Names are covered by a sync of their directory alone. Of the other changes of names any subset has happened, but those
  that touch the same name happened in order; a rename happens as a whole. What lies in a directory whose own name
  is missing is gone.
"""

import errno
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.twin import CREATED, DIRECTORY, DSYNC, LIED, TRUNCATED, Kind, Operation

BLOCK_BYTES = 512
PAGE_BYTES = 4096
_KEEP_SIZE = 1


@dataclass(slots=True)
class Change:
    """A change of a file's content that no sync covers. data None: a truncate to position.

    lost: a sync failed that should have covered it; no later one does.
    """

    number: int
    position: int
    data: bytes | None
    lost: bool = False


@dataclass(eq=False, slots=True)
class File:
    """synced: the content that is surely there."""

    synced: bytearray = field(default_factory=bytearray)
    changes: list[Change] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Directory:
    """synced: the names that are surely there."""

    synced: dict[str, "Node"] = field(default_factory=dict)
    current: dict[str, "Node"] = field(default_factory=dict)


Node = File | Directory


@dataclass(eq=False, slots=True)
class NameChange:
    """Names that are given to a node, or taken from one (None), all at once."""

    number: int
    names: list[tuple[Directory, str, Node | None]]


def _apply(content: bytearray, change: Change) -> None:
    if change.data is None:
        grown = change.position - len(content)
        if grown > 0:
            content.extend(bytes(grown))
        else:
            del content[change.position :]
        return
    if change.position > len(content):
        content.extend(bytes(change.position - len(content)))
    content[change.position : change.position + len(change.data)] = change.data


def _without(lost: Change, change: Change) -> list[Change]:
    """What is left of a lost change where another one is not."""
    assert lost.data is not None
    start, end = change.position, change.position + len(change.data or b"")
    if change.data is None:
        end = max(start, lost.position + len(lost.data))
    parts = []
    if lost.position < start:
        parts.append(Change(lost.number, lost.position, lost.data[: start - lost.position], True))
    if lost.position + len(lost.data) > end:
        at = max(end, lost.position)
        parts.append(Change(lost.number, at, lost.data[at - lost.position :], True))
    return parts


class Disk:
    """The directory `root` as operations change it; begun with what `tree` holds, all of it synced."""

    def __init__(self, root: Path | str, tree: Path | None = None):
        self.root = str(root)
        self.top = Directory()
        self.name_changes: list[NameChange] = []
        self._by_inode: dict[int, Node] = {}
        # By number: the inode's node and how much had been recorded when the sync began.
        self._syncs: dict[int, tuple[Node | None, int]] = {}
        self._number = 0
        if tree is not None:
            self._by_inode[os.stat(tree).st_ino] = self.top
            self._load(tree, self.top)

    def _load(self, path: Path, directory: Directory) -> None:
        for entry in os.scandir(path):
            node: Node
            if entry.is_dir():
                node = Directory()
                self._load(Path(entry.path), node)
            else:
                node = File(bytearray(Path(entry.path).read_bytes()))
            directory.synced[entry.name] = directory.current[entry.name] = node
            self._by_inode[entry.inode()] = node

    # What happens

    def play(self, operation: Operation) -> None:
        """One operation more has happened."""
        self._number += 1
        match operation.kind:
            case Kind.OPEN:
                if operation.flags & CREATED:
                    self._make(operation, File())
                elif operation.flags & TRUNCATED:
                    self._change(operation, 0, None)
            case Kind.MKDIR:
                self._make(operation, Directory())
            case Kind.WRITE:
                self._change(operation, operation.position, operation.data)
                if operation.flags & DSYNC:
                    self._end_sync(self._by_inode.get(operation.inode), self._number + 1)
            case Kind.TRUNCATE:
                self._change(operation, operation.position, None)
            case Kind.ALLOCATE:
                if not operation.result & _KEEP_SIZE:
                    self._change(operation, operation.position, None)
            case Kind.UNLINK | Kind.RMDIR:
                directory, name = self._place(operation.path)
                directory.current.pop(name, None)
                self.name_changes.append(NameChange(self._number, [(directory, name, None)]))
            case Kind.RENAME:
                self._rename(operation)
            case Kind.SYNC:
                self._syncs[operation.number] = (self._synced_node(operation), self._number)
            case Kind.SYNC_END:
                node, number = self._syncs.pop(operation.number)
                if operation.result < 0:
                    # An interrupted one was not tried to its end: it loses nothing.
                    if operation.result != -errno.EINTR:
                        self._fail_sync(node, number)
                elif not operation.flags & LIED:
                    self._end_sync(node, number)

    def _place(self, path: str) -> tuple[Directory, str]:
        *directories, name = os.path.relpath(path, self.root).split("/")
        directory = self.top
        for part in directories:
            child = directory.current[part]
            assert isinstance(child, Directory), path
            directory = child
        return directory, name

    def _make(self, operation: Operation, node: Node) -> None:
        if operation.path == self.root:
            # The directory itself is taken to be there.
            self._by_inode[operation.inode] = self.top
            return
        directory, name = self._place(operation.path)
        self._by_inode[operation.inode] = node
        directory.current[name] = node
        self.name_changes.append(NameChange(self._number, [(directory, name, node)]))

    def _change(self, operation: Operation, position: int, data: bytes | None) -> None:
        node = self._by_inode[operation.inode]
        assert isinstance(node, File), operation
        node.changes.append(Change(self._number, position, data))

    def _rename(self, operation: Operation) -> None:
        old_directory, old = self._place(operation.path)
        new_directory, new = self._place(operation.second_path)
        node = old_directory.current.pop(old)
        new_directory.current[new] = node
        self.name_changes.append(NameChange(self._number, [(old_directory, old, None), (new_directory, new, node)]))

    def _synced_node(self, operation: Operation) -> Node | None:
        if operation.flags & DIRECTORY and operation.path == self.root:
            return self.top
        return self._by_inode.get(operation.inode)

    def _end_sync(self, node: Node | None, number: int) -> None:
        if isinstance(node, File):
            left: list[Change] = []
            for change in node.changes:
                if change.number < number and not change.lost:
                    _apply(node.synced, change)
                    # What was lost before can't come back over it.
                    left = [part for lost in left for part in _without(lost, change)]
                else:
                    left.append(change)
            node.changes = left
        elif isinstance(node, Directory):
            waiting = []
            for change in self.name_changes:
                if change.number < number and any(directory is node for directory, _, _ in change.names):
                    _apply_names(change, None)
                else:
                    waiting.append(change)
            self.name_changes = waiting

    def _fail_sync(self, node: Node | None, number: int) -> None:
        if isinstance(node, File):
            for change in node.changes:
                change.lost = change.lost or (change.data is not None and change.number < number)

    # After the cut

    def cut(self, target: Path, rng: random.Random, overall: str = "") -> None:
        """Write to the new directory `target` what a power cut now may have left. overall: what is there of all that no
        sync covers: "all", "none", "mixed"; drawn when it is not given."""
        overall = overall or rng.choices(("all", "none", "mixed"), (2, 2, 6))[0]
        names = _names_after(self.name_changes, rng, overall)
        self._write(self.top, target, names, rng, overall)

    def _write(
        self, directory: Directory, target: Path, names: "_Names", rng: random.Random, overall: str
    ) -> None:
        os.mkdir(target)
        present = dict(directory.synced)
        present.update(names.get(id(directory), {}))
        for name in sorted(present):
            node = present[name]
            if isinstance(node, File):
                (target / name).write_bytes(content_after(node, rng, overall))
            elif isinstance(node, Directory):
                self._write(node, target / name, names, rng, overall)

    def tree(self) -> Iterable[str]:
        """The names there are now, for tests."""
        def walk(directory: Directory, prefix: str) -> Iterable[str]:
            for name, node in sorted(directory.current.items()):
                yield prefix + name
                if isinstance(node, Directory):
                    yield from walk(node, prefix + name + "/")

        return walk(self.top, "")

    def unsynced(self) -> list[str]:
        """What a power cut now might undo, of what can be reached by its name: files by what was written to them, names
        (with a + or, taken away, a -)."""
        places: dict[int, str] = {}
        found = []

        def walk(directory: Directory, prefix: str) -> None:
            places[id(directory)] = prefix
            for name, node in directory.current.items():
                if isinstance(node, Directory):
                    walk(node, f"{prefix}{name}/")
                elif node.changes:
                    found.append(f"{prefix}{name}")

        walk(self.top, "")
        for change in self.name_changes:
            for directory, name, node in change.names:
                if id(directory) in places:
                    found.append(f"{'-' if node is None else '+'}{places[id(directory)]}{name}")
        return sorted(found)


# By the directory's id: names and what they stand for; None: not there.
_Names = dict[int, dict[str, Node | None]]


def _apply_names(change: NameChange, names: _Names | None) -> None:
    for directory, name, node in change.names:
        if names is not None:
            names.setdefault(id(directory), {})[name] = node
        elif node is None:
            directory.synced.pop(name, None)
        else:
            directory.synced[name] = node


def _names_after(changes: list[NameChange], rng: random.Random, overall: str) -> _Names:
    """Which of the changes of names have happened."""
    names: _Names = {}
    way = overall if overall != "mixed" else rng.choice(("all", "none", "some", "all but one", "one", "first"))
    chosen = set(_chosen(len(changes), way, rng))
    blocked: set[tuple[int, str]] = set()
    for number, change in enumerate(changes):
        keys = {(id(directory), name) for directory, name, _ in change.names}
        if number in chosen and not keys & blocked:
            _apply_names(change, names)
        else:
            blocked |= keys
    return names


def _chosen(count: int, way: str, rng: random.Random) -> Iterable[int]:
    match way:
        case "all":
            return range(count)
        case "none":
            return ()
        case "first":
            return range(rng.randint(0, count))
        case "one":
            return (rng.randrange(count),) if count else ()
        case "all but one":
            left_out = rng.randrange(count) if count else 0
            return (number for number in range(count) if number != left_out)
        case _:
            return [number for number in range(count) if rng.random() < 0.5]


def content_after(file: File, rng: random.Random, overall: str) -> bytes:
    """What the file may hold."""
    changes = file.changes
    if not changes or overall == "none":
        return bytes(file.synced)
    way = overall if overall != "mixed" else rng.choice(("all", "none", "some", "all but one", "one", "first", "torn"))
    if way == "none":
        return bytes(file.synced)
    if way in ("all", "first"):
        content = bytearray(file.synced)
        for number in _chosen(len(changes), way, rng):
            _apply(content, changes[number])
        return bytes(content)
    return _content_by_blocks(file, way, rng)


def _content_by_blocks(file: File, way: str, rng: random.Random) -> bytes:
    """Each block as after one of the changes that touch it.

    That a file was made shorter is in the file system's journal: it happened or not, never by halves. What is left of
    the page where it ends is zeroed by itself, though, and may be on the disk before.
    """
    content, whole = bytearray(file.synced), bytearray(file.synced)
    writes: list[Change] = []
    for change in file.changes:
        size = len(whole)
        _apply(whole, change)
        if change.data is not None or change.position >= size:
            writes.append(change)
            continue
        rest = min(size, -(-change.position // PAGE_BYTES) * PAGE_BYTES) - change.position
        if rest:
            writes.append(Change(change.number, change.position, bytes(rest)))
        if rng.random() < 0.5:
            content = _blocks_after(content, writes, way, rng)
            _apply(content, change)
            writes = []
    return bytes(_blocks_after(content, writes, way, rng))


def _blocks_after(base: bytearray, changes: list[Change], way: str, rng: random.Random) -> bytearray:
    """The same of changes that make no file shorter."""
    sizes = [len(base)]
    content = bytearray(base)
    for change in changes:
        sizes.append(max(sizes[-1], change.position + len(change.data or b"")))
    blocks: dict[int, list[int]] = {}
    for number, change in enumerate(changes):
        end = change.position + len(change.data or b"")
        for block in range(change.position // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
            blocks.setdefault(block, []).append(number)
    places = sorted(blocks)
    chosen = {places[number] for number in _chosen(len(places), way, rng)} if way != "torn" else set(places)
    content.extend(bytes(max(sizes) - len(content)))
    for block, numbers in blocks.items():
        if block not in chosen:
            continue
        # Torn: the block as it was at any moment; else as it was last.
        for number in numbers[: rng.randint(0, len(numbers))] if way == "torn" else numbers:
            _apply_to_block(content, changes[number], block)
    size = sizes[-1] if rng.random() < 0.5 else _some_size(sizes, rng)
    return content[:size]


def _some_size(sizes: list[int], rng: random.Random) -> int:
    """One of the sizes it had; or, as pages are written one by one, one between two of them."""
    at = rng.randrange(len(sizes))
    if at and sizes[at] > sizes[at - 1] and rng.random() < 0.5:
        pages = range(sizes[at - 1] // PAGE_BYTES + 1, -(-sizes[at] // PAGE_BYTES))
        if pages:
            return rng.choice(pages) * PAGE_BYTES
    return sizes[at]


def _apply_to_block(content: bytearray, change: Change, block: int) -> None:
    data = change.data or b""
    start = max(block * BLOCK_BYTES, change.position)
    end = min((block + 1) * BLOCK_BYTES, change.position + len(data))
    if start < end:
        content[start:end] = data[start - change.position : end - change.position]
