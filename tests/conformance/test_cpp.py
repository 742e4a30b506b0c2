"""The cases from C++, against both fronts. The client is compiled first: some 20 s of CPU."""

import os
from pathlib import Path

import pytest

from .clients import Missing, build_cpp, results, run
from .server import Addresses


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    scratch: Path = tmp_path_factory.mktemp("cpp")
    try:
        return build_cpp(scratch)
    except Missing as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(str(exc))
        pytest.skip(str(exc))


def test_cases(addresses: Addresses, client: list[str]) -> None:
    failed = {each.case: each.reason for each in run(client, addresses) if each.verdict != "PASS"}
    assert not failed


def test_what_a_client_does_not_say_has_failed() -> None:
    found = results("PASS a\nFAIL b why so\nnoise\nPASS d\n", 1, "", names=("a", "b", "c"))
    assert [(each.case, each.verdict) for each in found] == [
        ("a", "PASS"), ("b", "FAIL"), ("c", "FAIL"), ("d", "FAIL")]
