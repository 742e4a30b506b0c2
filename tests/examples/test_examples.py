"""The examples run as they stand, and the README shows them as they are."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.broker_process import BrokerProcess

TOP = Path(__file__).parents[2]
EXAMPLES = sorted((TOP / "examples" / "python").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(example: Path, broker: BrokerProcess) -> None:
    done = subprocess.run([sys.executable, example, broker.address], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    if example.name == "first_conversation.py":
        assert done.stdout == "stored in partition 1 at offset 0\n0: world hello\n"


def test_the_readme_shows_the_first_conversation() -> None:
    example = (TOP / "examples" / "python" / "first_conversation.py").read_text()
    shown = (TOP / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert shown == example[example.index("import sys") :]


def test_the_files_that_the_readme_names_are_there() -> None:
    readme = (TOP / "README.md").read_text()
    links = [part.split(")")[0] for part in readme.split("](")[1:]]
    assert len(links) > 4
    missing = [link for link in links if "://" not in link and not (TOP / link).exists()]
    assert not missing
