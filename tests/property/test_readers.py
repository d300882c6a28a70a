"""Whatever bytes our readers are given: they read them, or say in one of our errors what is wrong."""

import gzip
import hashlib
import json
import logging
import runpy
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from rrlsam.data.atlas import Atlas
from rrlsam.errors import RrlsamError
from rrlsam.geometry import make_geometry
from rrlsam.models.checkpoint import Checkpoint, Progress, save_checkpoint
from rrlsam.models.choose import read_model
from rrlsam.models.model_file import export_model
from rrlsam.models.model_import import expected_networks, import_model
from rrlsam.nets.build import build_networks
from rrlsam.plan import Plan, check_plan
from rrlsam.scans.dataset import load_dataset
from rrlsam.scans.integrity import check_dataset
from rrlsam.scans.volume import read_image
from rrlsam.settings import FINAL
from rrlsam.system.jsonio import from_json, to_json
from rrlsam.workspace import Workspace

pytestmark = pytest.mark.filterwarnings("default")
UNIT = runpy.run_path(str(Path(__file__).parents[1] / "unit" / "conftest.py"))
SECONDS_A_READER = 120
SLOW_TO_DRAW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)
NAMES = ("plan", "dataset", "zip bytes", "zip members", "nifti")

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1 << 31, 1 << 63, 10**30])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../x", "os:system", "subprocess.Popen", "\0", "a" * 300, "NaN", "all"])
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
)


def paths_of(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the nodes of a JSON value lie."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(path for key, item in inner for path in paths_of(item, (*here, key)))]


@st.composite
def spoilt_json(draw: st.DrawFn, text: bytes) -> bytes:
    """A JSON text, one to three nodes of which are replaced, removed or doubled."""
    value = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths_of(value)))
        if not path:
            return json.dumps(draw(JSON)).encode()
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        action = draw(st.sampled_from(["replace", "remove", "double"]))
        if action == "remove":
            del parent[path[-1]]
        elif action == "double" and isinstance(parent, list):
            parent.append(parent[path[-1]])
        else:
            parent[path[-1]] = draw(JSON)
    return json.dumps(value).encode()


@st.composite
def spoilt_bytes(draw: st.DrawFn, content: bytes, within: int | None = None) -> bytes:
    """Bytes, some of which (among the first `within`) are changed; sometimes cut short."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, (within or len(changed)) - 1))
        piece = draw(st.binary(min_size=1, max_size=8))
        changed[start : start + len(piece)] = piece
    return bytes(changed[: draw(st.integers(0, len(changed)))] if draw(st.integers(0, 9)) == 0 else changed)


class Ground:
    """Files to spoil, and what reads each kind."""

    def __init__(self, folder: Path, phantoms: Any) -> None:
        self.folder = folder
        self.dataset = phantoms.make_dataset(folder / "raw" / "Dataset001_Tiny", n_labelled=2, n_unlabelled=1)
        self.descriptions = ((self.dataset / "dataset.json").read_bytes(), self._explicit_description())
        self.plan = UNIT["plan_in_miniature"]()
        self.model = self._model(phantoms)
        image = phantoms.phantom(0)[0][0]
        phantoms.write_volume(image, folder / "scan.nii")
        self.scan = (folder / "scan.nii").read_bytes()

    def kinds(self) -> dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], object]]]:
        """Of each reader: what it is given, and the reading of it."""
        description = st.sampled_from(self.descriptions).flatmap(spoilt_json)
        members = self.members()
        member = st.sampled_from(sorted(name for name in members if name.endswith(".json"))).flatmap(
            lambda name: st.tuples(st.just(name), spoilt_json(members[name]))
        )
        arrays = st.sampled_from(sorted(name for name in members if name.endswith(".safetensors"))).flatmap(
            lambda name: st.tuples(st.just(name), spoilt_bytes(members[name], within=400))
        )
        return {
            "plan": (spoilt_json(to_json(self.plan).encode()) | st.binary(max_size=40), self.read_plan),
            "dataset": (description | st.binary(max_size=40), self.read_dataset),
            "zip bytes": (spoilt_bytes(self.model) | spoilt_bytes(self.model[-2000:]), self.read_zip),
            "zip members": (member | arrays, self.read_members),
            "nifti": (st.tuples(spoilt_bytes(self.scan, within=352), st.booleans()), self.read_scan),
        }

    def read_plan(self, text: bytes) -> None:
        expected_networks(check_plan(from_json(Plan, text, source="plan"), source="plan"), "plan")

    def read_dataset(self, text: bytes) -> None:
        (self.dataset / "dataset.json").write_bytes(text)
        check_dataset(load_dataset(self.dataset), workers=1)

    def read_zip(self, content: bytes) -> None:
        path, results = self.folder / "spoilt.zip", self.folder / "results"
        path.write_bytes(content)
        try:
            import_model(path, Workspace(roots={"raw": None, "preprocessed": None, "results": results}))
        except RrlsamError:
            assert list(results.rglob("*.pt")) == []
            raise
        finally:
            shutil.rmtree(results, ignore_errors=True)

    def read_members(self, changed: tuple[str, bytes]) -> None:
        name, content = changed
        members = self.members() | {name: content}
        if name != "manifest.json":
            manifest = json.loads(members["manifest.json"])
            manifest["members"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            members["manifest.json"] = json.dumps(manifest).encode()
        path = self.folder / "members.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for member, text in members.items():
                archive.writestr(member, text)
        self.read_zip(path.read_bytes())

    def read_scan(self, given: tuple[bytes, bool]) -> None:
        content, packed = given
        path = self.folder / ("spoilt.nii.gz" if packed else "spoilt.nii")
        path.write_bytes(gzip.compress(content, 1) if packed else content)
        image = read_image(path)
        assert image.GetNumberOfPixels() * image.GetSizeOfPixelComponent() <= len(content)

    def members(self) -> dict[str, bytes]:
        with zipfile.ZipFile(self.folder / "model.zip") as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def _explicit_description(self) -> bytes:
        content = json.loads((self.dataset / "dataset.json").read_bytes())
        content["labels"] = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
        content["regions_class_order"] = [1, 2]
        files = {"images": ["imagesTr/lab_00_0000.nii.gz"], "label": "labelsTr/lab_00.nii.gz"}
        return json.dumps({**content, "dataset": {"lab_00": files}}).encode()

    def _model(self, phantoms: Any) -> bytes:
        size = self.plan.grid.size_vox
        image, label = phantoms.phantom(0, size)
        grid = make_geometry(size, np.eye(4))
        atlas = Atlas(
            case="atlas",
            grid=grid,
            image=torch.from_numpy(image)[None],
            label=torch.from_numpy(label.astype(np.int16))[None],
            foreground=(UNIT["STATS"],),
            alignment_image=torch.from_numpy(image[0]),
            alignment_geometry=grid,
        )
        checkpoint = Checkpoint(
            plan=self.plan,
            provenance=UNIT["provenance_of"](("atlas",)),
            atlases=(atlas,),
            networks=build_networks(self.plan, seed=0).state_dict(),
            progress=Progress(finished=("joint",), stage="", iteration=0, optimizer=None, journal_size=0),
        )
        folder = self.folder / "trained" / "Dataset001_Tiny" / "rrlsam" / "default__rrlsamPlans"
        save_checkpoint(checkpoint, folder / "fold_all" / FINAL)
        model = read_model(folder)
        assert model is not None
        export_model(model, None, self.folder / "model.zip", licence="")
        return (self.folder / "model.zip").read_bytes()


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, phantoms: Any) -> Ground:
    return Ground(tmp_path_factory.mktemp("readers"), phantoms)


def fuzz(ground: Ground, name: str, examples: int, number: int = 0) -> int:
    """Give a reader many spoilt inputs; whatever is not one of our errors fails. Returns how many were refused."""
    inputs, read = ground.kinds()[name]
    refused = []

    def attempt(given_input: Any) -> None:
        try:
            read(given_input)
        except RrlsamError as error:
            refused.append(error)

    limits = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=SLOW_TO_DRAW)
    seed(number)(limits(given(inputs)(attempt)))()
    return len(refused)


@pytest.mark.parametrize("name", NAMES)
def test_spoilt_input_is_read_or_refused_in_our_words(ground, name):
    fuzz(ground, name, examples=40)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_spoilt_input_is_read_or_refused_for_minutes(ground, name):
    end, rounds, refused = time.monotonic() + SECONDS_A_READER, 0, 0
    while time.monotonic() < end:
        rounds += 1
        refused += fuzz(ground, name, examples=200, number=rounds)
    logging.getLogger(__name__).info("%s: %d inputs, %d of them refused", name, 200 * rounds, refused)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"labels":' * 50_000, b"\xff\xfe", b"", b"9" * 5000])
def test_json_made_to_break_parsers_is_refused(ground, text):
    for read in (ground.read_plan, ground.read_dataset):
        with pytest.raises(RrlsamError):
            read(text)


def test_a_header_that_claims_more_than_the_file_holds_is_refused(ground):
    content = bytearray(ground.scan)
    content[40:56] = struct.pack("<8h", 3, 32000, 32000, 32000, 1, 1, 1, 1)
    with pytest.raises(RrlsamError):
        ground.read_scan((bytes(content), False))
