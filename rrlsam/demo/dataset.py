"""Build a one-shot data set in nnU-Net's raw layout from the scans that ship with the package."""

import json
import shutil
from importlib.resources import as_file, files
from pathlib import Path

from rrlsam.system.files import atomic_write

NAME = "Dataset001_HippocampusDemo"
_ENDING = ".nii.gz"


def build_dataset(raw: Path) -> Path:
    """One labelled scan, the rest unlabelled, ten held out in imagesTs and labelsTs; returns the data set's folder.

    cases.json names the roles. The labelled scan is the most central one by images alone.
    """
    folder = raw / NAME
    with as_file(files("rrlsam.demo")) as source:
        roles = json.loads((source / "cases.json").read_bytes())
        _copy(source, folder, [roles["labelled"]], "imagesTr", "labelsTr")
        _copy(source, folder, roles["unlabelled"], "imagesUn", None)
        _copy(source, folder, roles["test"], "imagesTs", "labelsTs")
        shutil.copyfile(source / "LICENSE-DATA.md", folder / "LICENSE-DATA.md")
    content = {
        "name": "HippocampusDemo",
        "licence": "CC-BY-SA 4.0, see LICENSE-DATA.md",
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
        "numTraining": 1,
        "file_ending": _ENDING,
    }
    with atomic_write(folder / "dataset.json") as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder


def _copy(source: Path, folder: Path, cases: list[str], images: str, labels: str | None) -> None:
    (folder / images).mkdir(parents=True)
    for case in cases:
        shutil.copyfile(source / "images" / f"{case}{_ENDING}", folder / images / f"{case}_0000{_ENDING}")
    if labels is not None:
        (folder / labels).mkdir()
        for case in cases:
            shutil.copyfile(source / "labels" / f"{case}{_ENDING}", folder / labels / f"{case}{_ENDING}")
