"""Fixtures that all tests share; `phantoms` gives the module tests/phantoms.py."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from rrlsam.dataset import Dataset, load_dataset
from rrlsam.workspace import Workspace


def _load_phantoms() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rrlsam_test_phantoms", Path(__file__).with_name("phantoms.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_PHANTOMS = _load_phantoms()


@pytest.fixture
def phantoms() -> ModuleType:
    return _PHANTOMS


@pytest.fixture
def make_dataset() -> Callable[..., Path]:
    """phantoms.make_dataset: writes a raw data set and returns its folder."""
    return _PHANTOMS.make_dataset


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Three fresh roots."""
    roots: dict[str, Path | None] = {name: tmp_path / name for name in ("raw", "preprocessed", "results")}
    for path in roots.values():
        assert path is not None
        path.mkdir()
    return Workspace(roots=roots)


@pytest.fixture
def tiny(workspace: Workspace, make_dataset: Callable[..., Path]) -> Dataset:
    """Five labelled and two unlabelled phantoms, loaded."""
    return load_dataset(make_dataset(workspace.root("raw") / "Dataset001_Tiny"))


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """Change entries of a JSON file; a value of None removes it."""

    def edit(path: Path, **changes: object) -> None:
        content = json.loads(path.read_text()) | changes
        gone = {key for key, value in changes.items() if value is None}
        path.write_text(json.dumps({key: value for key, value in content.items() if key not in gone}))

    return edit
