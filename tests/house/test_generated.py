"""Generated code is what proto/ generates, and pyproject.toml asks for libraries at least as new as it demands."""

import re
import tomllib
from pathlib import Path

import pytest

from .source import PACKAGE, ROOT, is_generated, missing

GENERATED = PACKAGE / "v1"


def generate(proto: Path, into: Path) -> dict[str, bytes]:
    """The files that `make -f Makefile.proto proto` makes of `proto`, a folder, by name."""
    try:
        from grpc_tools import protoc
    except ImportError:
        missing("grpcio-tools")
    sources = sorted(str(path.relative_to(proto)) for path in proto.rglob("*.proto"))
    outputs = [f"--{kind}_out={into}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main(["protoc", f"-I{proto}", *outputs, *sources]) == 0
    return {path.name: path.read_bytes() for path in into.rglob("*") if path.is_file()}


def differing(made: dict[str, bytes], committed: dict[str, bytes]) -> list[str]:
    return sorted(name for name in made.keys() | committed.keys() if made.get(name) != committed.get(name))


def test_generated_code_is_what_the_contract_generates(tmp_path: Path) -> None:
    committed = {path.name: path.read_bytes() for path in GENERATED.iterdir() if path.is_file() and is_generated(path)}
    assert not differing(generate(ROOT / "proto", tmp_path), committed), "run: make -f Makefile.proto proto"


def test_a_difference_is_found(tmp_path: Path) -> None:
    source, one, other = tmp_path / "proto", tmp_path / "one", tmp_path / "other"
    for folder in source, one, other:
        folder.mkdir()
    proto = source / "sample.proto"
    proto.write_text('syntax = "proto3"; message A { int32 x = 1; }')
    made = generate(source, one)
    assert sorted(made) == ["sample_pb2.py", "sample_pb2.pyi", "sample_pb2_grpc.py"]
    proto.write_text('syntax = "proto3"; message A { int32 x = 2; }')
    assert differing(made, generate(source, other)) == ["sample_pb2.py"]
    assert differing(made, made | {"stale_pb2.py": b""}) == ["stale_pb2.py"]


# Versions.


def demanded(messages: str, stubs: str) -> dict[str, tuple[int, ...]]:
    """The versions that generated code checks for when it is imported: of protobuf and of grpcio."""
    protobuf = re.search(r"ValidateProtobufRuntimeVersion\(\s*\S+,\s*(\d+),\s*(\d+),\s*(\d+),", messages)
    grpcio = re.search(r"GRPC_GENERATED_VERSION = '(\d+)\.(\d+)\.(\d+)'", stubs)
    assert protobuf and grpcio, "the generated code looks different now: see where it states its versions"
    return {"protobuf": tuple(map(int, protobuf.groups())), "grpcio": tuple(map(int, grpcio.groups()))}


def requirements(project: dict) -> dict[str, str]:
    """name: what stands behind it, of the run-time and development requirements of pyproject.toml and of the build."""
    listed = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in project["project"]["optional-dependencies"].values():
        listed += extra
    split = [re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[.*\])?\s*(.*)", each) for each in listed]
    return {match[1]: match[2] for match in split if match}


def at_least(bounds: str, version: tuple[int, ...]) -> bool:
    """Whether requirement bounds (">=1.85.1,<2", "==1.85.1") let nothing below `version` in."""
    lower = re.search(r"[>=]=\s*(\d+(?:\.\d+)*)", bounds)
    if lower is None:
        return False
    found = tuple(map(int, lower[1].split(".")))
    return found + (0,) * (len(version) - len(found)) >= version


def is_bounded(bounds: str) -> bool:
    return bool(re.search(r"==", bounds) or re.search(r">=", bounds) and re.search(r"<", bounds))


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_libraries_are_as_new_as_generated_code_demands() -> None:
    versions = demanded((GENERATED / "takhin_pb2.py").read_text(), (GENERATED / "takhin_pb2_grpc.py").read_text())
    asked = requirements(pyproject())
    for name in "protobuf", "grpcio", "grpcio-tools":
        version = versions.get(name, versions["grpcio"])
        assert at_least(asked[name], version), f"{name}{asked[name]}, but generated code demands {version}"


@pytest.mark.parametrize("name", sorted(requirements(pyproject())))
def test_requirements_have_both_bounds(name: str) -> None:
    assert is_bounded(requirements(pyproject())[name])


def test_a_bound_too_low_is_found() -> None:
    assert at_least(">=1.85.1,<2", (1, 85, 1)) and at_least("==1.85.1", (1, 85, 1)) and at_least(">=8,<9", (7, 35, 1))
    for bounds in ">=1.85,<2", ">=1.84.9,<2", "<2", "", "==1.85.0":
        assert not at_least(bounds, (1, 85, 1)), bounds
    assert is_bounded(">=1,<2") and is_bounded("==1") and not is_bounded(">=1") and not is_bounded("<2")
    project = {
        "build-system": {"requires": ["cython>=3,<4"]},
        "project": {"dependencies": ["grpcio"], "optional-dependencies": {"dev": ["pytest[x]>=8"]}},
    }
    assert requirements(project) == {"cython": ">=3,<4", "grpcio": "", "pytest": ">=8"}
    with pytest.raises(AssertionError):
        demanded("", "")
