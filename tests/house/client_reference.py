"""The reference part of docs/python-client.md, from the client's own signatures and docstrings.

    python -m tests.house.client_reference       write it into the page
"""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import takhin.client
from takhin.client import errors

from .source import ROOT

PAGE = ROOT / "docs" / "python-client.md"
BEGIN = "<!-- From the docstrings: python -m tests.house.client_reference -->\n"
# In the order in which they are shown, each with those of its methods that are not for programs.
CLASSES: dict[str, set[str]] = {
    "Client": set(),
    "Producer": {"start", "buffer_bytes"},
    "Consumer": {
        "start", "fetch", "hand_back", "membership", "positions", "was_committed", "joined", "assigned", "received",
        "revoking", "lost", "unreadable", "cut", "ended"},
    "Reader": {"next_batch"},
    "Transaction": set(),
}
VALUES = (
    "Message", "Records", "RecordMetadata", "Topic", "Partition", "Offsets", "Group", "GroupDescription", "GroupMember",
    "GroupOffset", "OffsetReset", "Health", "TopicPartition", "TLS",
)


def reference() -> str:
    """All of it, from BEGIN on."""
    parts = [BEGIN, "## Reference\n", _function("connect", takhin.client.connect, level=3)]
    for name, hidden in CLASSES.items():
        described = getattr(takhin.client, name)
        parts += [f"### {name}\n", _prose(described)]
        parts += [_function(method, value) for method, value in _methods(described) if method not in hidden]
    parts += ["### What they give\n", *(_value(name) for name in VALUES)]
    parts += ["### Errors\n", _error_tree(errors.ClientError), ""]
    return "\n".join(parts)


def _methods(described: type) -> Iterator[tuple[str, Any]]:
    """Public ones, those of Admin too, as they stand in the source."""
    for owner in reversed(described.__mro__):
        for name, value in vars(owner).items():
            if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                yield name, value


def _function(name: str, value: Any, level: int = 4) -> str:
    heading = "#" * level
    if isinstance(value, property):
        return f"{heading} {name}\n\n{_prose(value)}"
    return f"{heading} {name}\n\n```python\n{_signature(value)}\n```\n\n{_prose(value)}"


def _signature(function: Any) -> str:
    """As it stands in the source, without self: how inspect shows it depends on Python's version."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None
    begins = node.name + "("
    if inspect.iscoroutinefunction(function):
        begins = "await " + begins
    elif inspect.isasyncgenfunction(function):
        begins = "async for ... in " + begins
    returned = ast.unparse(node.returns).strip("'")
    node.args.args = [each for each in node.args.args if each.arg != "self"]
    wanted = node.args
    defaults = [None] * (len(wanted.args) - len(wanted.defaults)) + list(wanted.defaults)
    parts = [_argument(each, default) for each, default in zip(wanted.args, defaults, strict=True)]
    if wanted.vararg is not None:
        parts.append("*" + _argument(wanted.vararg, None))
    elif wanted.kwonlyargs:
        parts.append("*")
    parts += [_argument(each, default) for each, default in zip(wanted.kwonlyargs, wanted.kw_defaults, strict=True)]
    lines = [begins]
    for number, part in enumerate(parts):
        part += ", " if number + 1 < len(parts) else ""
        if len(lines[-1]) + len(part) > 110:
            lines.append("    ")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines) + f") -> {returned}"


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    annotation = f": {ast.unparse(argument.annotation)}" if argument.annotation is not None else ""
    return argument.arg + annotation + (f" = {ast.unparse(default)}" if default is not None else "")


def _prose(described: Any) -> str:
    """A docstring as one paragraph for each of its own."""
    text = inspect.cleandoc(described.__doc__ or "")
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    return "\n\n".join(textwrap.fill(each, 120, break_long_words=False) for each in paragraphs if each) + "\n"


def _value(name: str) -> str:
    described = getattr(takhin.client, name)
    if dataclasses.is_dataclass(described):
        fields = [each.name for each in dataclasses.fields(described)]
    elif hasattr(described, "_fields"):
        fields = list(described._fields)
    else:
        fields = sorted(each for each in vars(described) if not each.startswith("_"))
    doc = described.__doc__ or ""
    own = "" if doc.startswith(f"{name}(") else _prose(described)
    listed = ", ".join(f"`{each}`" for each in fields)
    return f"#### {name}\n\n{textwrap.fill(listed, 120, break_long_words=False)}\n" + (f"\n{own}" if own else "")


def _error_tree(root: type, depth: int = 0) -> str:
    told = " ".join((root.__doc__ or "").split("\n\n")[0].split())
    line = f"{'  ' * depth}- `{root.__name__}`" + (f": {told}" if told and depth else "")
    children = sorted(root.__subclasses__(), key=lambda each: each.__name__)
    return "\n".join([line, *(_error_tree(each, depth + 1) for each in children if each.__module__ == errors.__name__)])


def main() -> None:
    text = PAGE.read_text()
    guide = text.partition(BEGIN)[0]
    PAGE.write_text(guide + reference())


if __name__ == "__main__":
    main()
