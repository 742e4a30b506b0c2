"""The client is typed strictly: mypy finds nothing, and would."""

import subprocess
import sys
from pathlib import Path

from .source import ROOT


def mypy(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(cache), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_client_is_typed_strictly(tmp_path: Path) -> None:
    told = mypy(cache=tmp_path / "cache")
    assert told.returncode == 0, told.stdout + told.stderr
    # What a program sees that uses it, too.
    program = tmp_path / "program.py"
    program.write_text(
        "import takhin\n\n\n"
        "async def use() -> None:\n"
        "    async with takhin.connect() as tk:\n"
        "        async for message in tk.read('orders'):\n"
        "            reveal_type(message.value)\n"
        "        await tk.create_topic(3)\n")
    told = mypy("--strict", str(program), cache=tmp_path / "cache")
    assert 'Revealed type is "bytes | None"' in told.stdout.replace("builtins.", "")
    assert "Argument 1 to \"create_topic\" of \"Admin\" has incompatible type \"int\"" in told.stdout
    assert "Found 1 error in 1 file" in told.stdout
