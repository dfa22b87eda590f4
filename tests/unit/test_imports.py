"""Imports point one way, and heavy libraries stay in their rooms."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "trainer"
LAYERS = [
    {"errors", "extras", "files", "locking", "quiet"},
    {"config"},
    {"slides", "launch"},
    {"runtime", "scaling"},
    {"patches"},
    {"stores"},
    {"batches", "models", "curriculum", "inspect"},
    {"evaluate"},
    {"train"},
    {"infer"},
    {"bench", "doctor", "experiments"},
    {"export"},
    {"cli"},
]
ROOMS = {
    "horovod": {"runtime"},
    "mpi4py": {"runtime"},
    "tensorflow": {"models", "runtime", "stores/tfrecord_store.py"},
    "h5py": {"stores"},
    "imagecodecs": {"slides", "stores"},
    "simplejpeg": {"slides", "stores"},
    "openslide": {"slides"},
    "tifffile": {"slides", "infer/pyramid.py"},
    "matplotlib": {"evaluate", "bench", "experiments", "scaling"},
    "pyarrow": {"patches"},
    "openvino": {"infer/openvino.py"},
    "nncf": {"export"},
    "tf2onnx": {"export"},
}
FILES = sorted(ROOT.rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{a.name}" for a in node.names} if node.module == "trainer" else {node.module}
    return names


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    mine = room(path)
    if mine in ("__init__", "__main__"):
        return
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "trainer" or parts[1] in (mine, "__version__"):
            continue
        assert layer(parts[1]) < layer(mine), f"{mine} imports {name}"
        assert not (mine in ("slides", "patches", "stores", "batches", "models") and parts[1] == "runtime"), (
            f"{mine} imports {name}: data and model code take rank and world size as numbers"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_libraries_stay_in_their_rooms(path: Path) -> None:
    for name in imported(path):
        top = name.split(".")[0]
        rooms = ROOMS.get(top, {room(path)})
        assert {room(path), str(path.relative_to(ROOT))} & rooms, f"{room(path)} imports {top}"
