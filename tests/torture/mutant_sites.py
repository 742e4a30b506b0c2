"""Where the engine's safeguards stand, found in its sources by rule, and the sources with a switch at each of them.

A site is one of these; the rules look at tokens, so they serve Python and Cython alike:

  sync       a call of fdatasync, fsync, or of what is named after them (sync_data, sync_file, sync …); an argument of
             SyncThread.submit that holds files; what is noted as not yet synced; synchronous=FULL of the database.
             Taken out: the call is not made, the list is empty, the setting is OFF.
  directory  the same of directories and of the names in them.
  checksum   a comparison for (in)equality that names a crc, a checksum, a sum, or memcmp. Taken out: it matches.
  bound      a comparison of sizes, ends, offsets, counts, limits: in the test of an `if` whose block ends with a
             refusal (raise, or return of a code, None, False, a negative number), or before `and` in a condition that
             goes on to read ([…]). Taken out: it is within bounds.

Each switch is a number; a source with switches does what the original does unless its number is chosen.
"""

import io
import re
import tokenize
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

PLACES = ("takhin/codec", "takhin/log", "takhin/broker")

_SYNC_CALLS = {"fdatasync", "sync", "sync_all", "sync_data", "sync_file"}
_DIRECTORY_CALLS = {"fsync", "sync_directories", "sync_directory", "sync_directory_of", "sync_names"}
_NOTED = {"_unsynced": "sync", "_unsynced_directories": "directory"}
_SETTING = "synchronous=FULL"
_CHECKSUM = re.compile(r"crc|checksum|_masked|_sum_of|memcmp")
_BOUND = re.compile(
    r"(?<![a-z])(end|sizes?|bytes|limits?|len|room|left|count|max\w*|most|minimum|largest|records|capacity|position|"
    r"offset|partitions|sequence|number|shift|first|high|low|value|wide|tag|start|index|length)(?![a-z])|SAFE_INT64"
)
_ORDER = {"<", ">", "<=", ">="}
_EQUALITY = {"==", "!="}
# A comparison ends where one of these stands beside it.
_KEYWORDS = {"and", "or", "not", "if", "else", "elif", "while", "return", "assert", "for", "lambda", "yield", "await"}
_DELIMITERS = {",", ":", "=", "+=", ":="}
_REFUSAL = re.compile(
    r"raise\b|return (-\w|NULL\b|None\b|False\b|[A-Z][A-Z0-9_]+\b|_damage\(|f?\")|self\._damaged\(|[\w.]*damage ="
)
# Behind one of these a `<` begins a cast.
_BEFORE_OPERAND = _KEYWORDS | _DELIMITERS | _ORDER | _EQUALITY | {
    "(", "[", "+", "-", "*", "/", "%", "&", "|", "in", "is",
}

_IGNORED = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
}
_FUNCTION = re.compile(r"(?:async )?def (\w+)|cp?def (?!class\b).*?(\w+)\(")


@dataclass(frozen=True, slots=True)
class Site:
    """One safeguard. begin, end: (line from 1, column) of what is switched; text: that, in one line.

    replacement: with {on} for the switch that says whether the safeguard stands, and {text}.
    """

    kind: str
    path: str
    function: str
    text: str
    begin: tuple[int, int]
    end: tuple[int, int]
    replacement: str
    ordinal: int = 1

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What stays the same when lines move: the how manieth of its text it is in the function."""
        return self.path, self.function, self.text, self.ordinal

    def __str__(self) -> str:
        return f"{self.kind} {self.path}:{self.begin[0]} {self.function}: {self.text}"


@dataclass(slots=True)
class _Line:
    """A logical line. block_ends: the last line of the block that it begins, in one string."""

    tokens: list[tokenize.TokenInfo]
    depth: int
    function: str = ""
    block_ends: str = ""

    @property
    def text(self) -> str:
        return _joined(self.tokens)


def _joined(tokens: list[tokenize.TokenInfo]) -> str:
    """As it stands, with one space where there is any room."""
    parts = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        apart = before is not None and before.end != token.start
        wrapped = before is not None and before.end[0] != token.start[0]
        opened = wrapped and before is not None and (before.string in "([" or token.string in ")]")
        parts.append(f"{' ' if apart and not opened else ''}{token.string}")
    return "".join(parts)


def sites_in(path: str, source: str) -> list[Site]:
    """The safeguards in a file, in their order."""
    found: list[Site] = []
    for line in _lines(source):
        if line.function:
            found += _syncs(path, line)
            found += _comparisons(path, line)
    found.sort(key=lambda site: (site.begin, site.end))
    same: Counter[tuple[str, str]] = Counter()
    for number, site in enumerate(found):
        same[site.function, site.text] += 1
        found[number] = replace(site, ordinal=same[site.function, site.text])
    return found


def all_sites(root: Path) -> list[Site]:
    """Of the whole engine, file by file."""
    paths = sorted(path for place in PLACES for path in (root / place).iterdir() if path.suffix in (".py", ".pyx"))
    return [site for path in paths for site in sites_in(str(path.relative_to(root)), path.read_text())]


def with_switches(source: str, sites: dict[int, Site], preamble: str) -> str:
    """The source with its sites (by their numbers) switched; preamble: what makes the switch known, before the first
    import."""
    lines = source.splitlines(keepends=True)
    # What lies inside another is put in before it, so from the end to the beginning.
    marks: list[tuple[tuple[int, int], int, int, str]] = []
    for number, site in sites.items():
        before, _, after = site.replacement.partition("{text}")
        size = (site.end[0] - site.begin[0], site.end[1] - site.begin[1])
        order = size[0] * 1000 + size[1]
        on = f"_mutant_on({number})"
        # At the same place the larger one's beginning comes first, and its end last.
        marks.append((site.begin, 1, -order, before.replace("{on}", on)))
        marks.append((site.end, 0, order, after.replace("{on}", on)))
    for (row, column), _, _, text in sorted(marks, reverse=True):
        line = lines[row - 1]
        lines[row - 1] = line[:column] + text + line[column:]
    for number, line in enumerate(lines):
        if re.match(r"(from|import|cimport) ", line):
            lines.insert(number, preamble)
            break
    return "".join(lines)


# Lines


def _lines(source: str) -> list[_Line]:
    lines: list[_Line] = []
    tokens: list[tokenize.TokenInfo] = []
    depth = 0
    names: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.INDENT:
            depth += 1
        elif token.type == tokenize.DEDENT:
            depth -= 1
        if token.type == tokenize.NEWLINE and tokens:
            line = _Line(tokens, depth)
            names = [(at, name) for at, name in names if at < depth]
            match = _FUNCTION.match(line.text)
            if match and line.text.endswith(":"):
                names.append((depth, match[1] or match[2]))
            elif names:
                line.function = names[-1][1]
            lines.append(line)
            tokens = []
        elif token.type not in _IGNORED:
            tokens.append(token)
    for number, line in enumerate(lines):
        if line.tokens[0].string in ("if", "elif"):
            block = number + 1
            while block < len(lines) and lines[block].depth > line.depth:
                line.block_ends = lines[block].text
                block += 1
    return lines


# Syncs


def _syncs(path: str, line: _Line) -> list[Site]:
    found = []
    tokens = line.tokens
    for number, token in enumerate(tokens):
        following = tokens[number + 1].string if number + 1 < len(tokens) else ""
        kind = "sync" if token.string in _SYNC_CALLS else "directory" if token.string in _DIRECTORY_CALLS else ""
        if kind and following == "(":
            begin = _chain_begin(tokens, number)
            value = "None" if tokens[begin].string == "await" else "0"
            text = "({text})" if tokens[begin].string == "await" else "{text}"
            found.append(_site(
                kind, path, line, begin, _closing(tokens, number + 1), f"({text} if {{on}} else {value})"
            ))
        elif token.string == "submit" and following == "(":
            for kind, (begin, end) in zip(("sync", "directory"), _arguments(tokens, number + 1), strict=False):
                if _joined(tokens[begin : end + 1]) != "[]":
                    found.append(_site(kind, path, line, begin, end, "({text} if {on} else [])"))
        elif token.string in _NOTED and following == "+=":
            found.append(_site(
                _NOTED[token.string], path, line, number + 2, len(tokens) - 1, "({text} if {on} else [])"
            ))
        elif token.string in _NOTED and following == "." and tokens[number + 2].string == "append":
            begin = _chain_begin(tokens, number)
            found.append(_site(
                _NOTED[token.string], path, line, begin, _closing(tokens, number + 3), "({text} if {on} else None)"
            ))
        elif token.type == tokenize.STRING and _SETTING in token.string:
            other = token.string.replace(_SETTING, "synchronous=OFF")
            found.append(_site("sync", path, line, number, number, f"({{text}} if {{on}} else {other})"))
    return found


def _chain_begin(tokens: list[tokenize.TokenInfo], number: int) -> int:
    """Where a.b().c begins of which the token is the last name; with an await before it."""
    while number >= 2 and tokens[number - 1].string == ".":
        number -= 2
        while tokens[number].string in ")]":
            number = _opening(tokens, number) - 1
    return number - 1 if number and tokens[number - 1].string == "await" else number


def _closing(tokens: list[tokenize.TokenInfo], number: int) -> int:
    depth = 0
    for at in range(number, len(tokens)):
        depth += (tokens[at].string in ("(", "[", "{")) - (tokens[at].string in (")", "]", "}"))
        if depth == 0:
            return at
    raise ValueError("a bracket is not closed")


def _opening(tokens: list[tokenize.TokenInfo], number: int) -> int:
    depth = 0
    for at in range(number, -1, -1):
        depth += (tokens[at].string in (")", "]", "}")) - (tokens[at].string in ("(", "[", "{"))
        if depth == 0:
            return at
    raise ValueError("a bracket is not opened")


def _arguments(tokens: list[tokenize.TokenInfo], number: int) -> list[tuple[int, int]]:
    """First and last token of each argument of the call whose bracket the token is."""
    last = _closing(tokens, number)
    found = []
    begin = at = number + 1
    while at <= last:
        if tokens[at].string in ("(", "[", "{"):
            at = _closing(tokens, at)
        elif at == last or tokens[at].string == ",":
            if at > begin:
                found.append((begin, at - 1))
            begin = at + 1
        at += 1
    return found


def _site(kind: str, path: str, line: _Line, begin: int, end: int, replacement: str) -> Site:
    text = _joined(line.tokens[begin : end + 1])
    return Site(kind, path, line.function, text, line.tokens[begin].start, line.tokens[end].end, replacement)


# Comparisons


def _comparisons(path: str, line: _Line) -> list[Site]:
    found: list[Site] = []
    _in_brackets(path, line, 0, len(line.tokens), False, found)
    return found


def _in_brackets(path: str, line: _Line, begin: int, end: int, negated: bool, found: list[Site]) -> None:
    """The comparisons between two tokens, and in the brackets there."""
    tokens = line.tokens
    at = start = begin
    operators: list[str] = []
    inverted = negated
    while at <= end:
        string = tokens[at].string if at < end else ""
        if at == end or string in _KEYWORDS or string in _DELIMITERS:
            if operators and at > start:
                _compare(path, line, start, at - 1, operators, inverted, found)
            operators = []
            inverted = negated != (string == "not")
            start = at + 1
        elif string in ("(", "[", "{"):
            closing = _closing(tokens, at)
            _in_brackets(path, line, at + 1, closing, inverted and at == start, found)
            at = closing
        elif string == "<" and (at == begin or tokens[at - 1].string in _BEFORE_OPERAND):
            # A cast.
            while tokens[at].string != ">":
                at += 1
        elif string in _ORDER or string in _EQUALITY:
            operators.append(string)
        at += 1


def _compare(
    path: str, line: _Line, begin: int, end: int, operators: list[str], negated: bool, found: list[Site]
) -> None:
    tokens = line.tokens
    text = _joined(tokens[begin : end + 1])
    within = "((not {on}) or {text})"
    never = "({on} and {text})"
    if operators[0] in _EQUALITY and len(operators) == 1 and _CHECKSUM.search(text) and not text.endswith(" != 0"):
        found.append(_site("checksum", path, line, begin, end, within if operators[0] == "==" else never))
        return
    if not _BOUND.search(text):
        return
    refuses = tokens[0].string in ("if", "elif") and _REFUSAL.match(line.block_ends)
    # What the broker returns nothing for is as a rule no refusal.
    if path.startswith("takhin/broker") and refuses and not (line.block_ends.startswith("raise") or "len(" in text):
        return
    ordered = operators[0] in _ORDER
    sizes = "!=" in operators and re.match(r"(<size_t>)?(len\(|[\w.]*size\w* )", text)
    if refuses and (ordered or sizes):
        found.append(_site("bound", path, line, begin, end, within if negated else never))
    elif ordered and end + 1 < len(tokens) and tokens[end + 1].string == "and":
        rest = tokens[end + 2 :]
        reads = any(after.string == "[" and before.type == tokenize.NAME for before, after in pairwise(rest))
        if reads and tokens[0].string in ("if", "elif", "while", "return"):
            found.append(_site("bound", path, line, begin, end, within))
