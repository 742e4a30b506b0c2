"""docs/python-client.md: its reference is what the docstrings say, and its Python runs."""

import ast

from tests.house.client_reference import BEGIN, PAGE, reference


def test_the_reference_is_what_the_code_says() -> None:
    _, begin, rest = PAGE.read_text().partition(BEGIN)
    assert begin + rest == reference(), "run python -m tests.house.client_reference"


def test_the_examples_on_the_page_are_python() -> None:
    guide = PAGE.read_text().partition(BEGIN)[0]
    blocks = [part.split("```")[0] for part in guide.split("```python\n")[1:]]
    assert len(blocks) > 5
    for block in blocks:
        compile(block, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
