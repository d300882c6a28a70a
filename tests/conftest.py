"""Fixtures that all tests share; `phantoms`, `ct_phantoms` and `projects` give the modules of these names."""

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import SimpleITK as sitk
import torch

from rrlsam.nets.sam import image_encoder_class
from rrlsam.planning import trials
from rrlsam.scans.dataset import Dataset, load_dataset
from rrlsam.teacher.sam_releases import RELEASES
from rrlsam.workspace import Workspace


def _load_beside(name: str) -> ModuleType:
    """A module of this folder; tests are no package, so that they cannot import it."""
    spec = importlib.util.spec_from_file_location(f"rrlsam_test_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_PHANTOMS = _load_beside("phantoms")
_CT_PHANTOMS = _load_beside("ct_phantoms")
_PROJECT = _load_beside("project")


@pytest.fixture(scope="session")
def phantoms() -> ModuleType:
    return _PHANTOMS


@pytest.fixture(scope="session")
def ct_phantoms() -> ModuleType:
    return _CT_PHANTOMS


@pytest.fixture(scope="session")
def outside_package() -> Iterator[Path]:
    """A folder with a planner and a trainer of somebody else, on Python's path."""
    sys.path.insert(0, str(_PROJECT.OUTSIDE_PACKAGE))
    yield _PROJECT.OUTSIDE_PACKAGE
    sys.path.remove(str(_PROJECT.OUTSIDE_PACKAGE))


@pytest.fixture(scope="session")
def make_project(tmp_path_factory: pytest.TempPathFactory, outside_package: Path) -> Callable[..., Any]:
    """A fresh project.Project around a data set of phantoms; options are phantoms.make_dataset's, or `build`'s."""

    def make(build: Callable[..., Path] = _PHANTOMS.make_dataset, **options: Any) -> Any:
        folder = tmp_path_factory.mktemp("project")
        build(folder / "raw" / _PROJECT.DATASET, **options)
        return _PROJECT.Project(folder)

    return make


@pytest.fixture(scope="session")
def projects() -> ModuleType:
    """The module project.py."""
    return _PROJECT


@pytest.fixture(scope="session")
def make_tiny_sam() -> Callable[[], torch.nn.Module]:
    """Makes segment_anything's image encoder in miniature: 64 px, 4 x 4 tokens, blocks windowed, global, windowed."""
    return lambda: image_encoder_class()(
        img_size=64,
        embed_dim=32,
        depth=3,
        num_heads=2,
        use_rel_pos=True,
        window_size=2,
        global_attn_indexes=(1,),
        norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
    )


@pytest.fixture(scope="session")
def tiny_sam_checkpoint(make_tiny_sam: Callable[[], torch.nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SAM checkpoint of that encoder."""
    encoder = make_tiny_sam()
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"image_encoder.{name}": 0.2 * torch.randn(t.shape, generator=generator)
        for name, t in encoder.state_dict().items()
    }
    path = tmp_path_factory.mktemp("sam") / "sam_tiny.pth"
    torch.save({**tensors, "mask_decoder.iou_token.weight": torch.zeros(1, 4)}, path)
    return path


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test fetches SAM's weights: nobody listens where they would come from."""
    for name, release in RELEASES.items():
        monkeypatch.setitem(RELEASES, name, dataclasses.replace(release, url=f"http://127.0.0.1:9/{release.file}"))


_correlation_after, _REMEMBERED = trials.correlation_after, {}


@pytest.fixture(autouse=True)
def remembered_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two phantoms are registered once a session to choose an atlas, not anew in each test that plans."""

    def remembered(moving: sitk.Image, fixed: sitk.Image) -> float:
        key = tuple(
            (sitk.Hash(image), image.GetSpacing(), image.GetOrigin(), image.GetDirection()) for image in (moving, fixed)
        )
        if key not in _REMEMBERED:
            _REMEMBERED[key] = _correlation_after(moving, fixed)
        return _REMEMBERED[key]

    monkeypatch.setattr(trials, "correlation_after", remembered)


@pytest.fixture(scope="session")
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
