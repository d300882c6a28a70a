"""Segmentation from Python: scans in memory, by a model that rrlsam_train made."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import SimpleITK as sitk

from rrlsam.engine.device import Device, choose_device
from rrlsam.errors import BadInputError
from rrlsam.geometry import geometry_of
from rrlsam.models.checkpoint import load_checkpoint, require_same_kind
from rrlsam.models.choose import require_model
from rrlsam.models.model_size import prediction_bytes
from rrlsam.prediction.inference import Model
from rrlsam.prediction.native import segmentation_on_native
from rrlsam.scans.place import require_place
from rrlsam.scans.volume import image_like, require_finite
from rrlsam.system.resources import require_memory


def open_model(folder: Path | str, folds: Iterable[str] | None = None, *, device: str = "auto") -> tuple[Model, ...]:
    """The folds of a model's folder (`.../TRAINER__PLANS`), by default all finished ones, for `segment_image`."""
    trained = require_model(Path(folder))
    return load_models(trained.checkpoints(folds), choose_device(device), trained.folder)


def load_models(checkpoints: Sequence[Path], device: Device, folder: Path) -> tuple[Model, ...]:
    """The models of some checkpoints, which mean the same by their channels and classes.

    ResourceError if the processor's memory cannot hold a prediction.
    """
    trained = [load_checkpoint(path) for path in checkpoints]
    for path, checkpoint in zip(checkpoints, trained, strict=True):
        require_same_kind(trained[0], checkpoint, path, "predict them apart with -f")
    if device.name == "cpu":
        needed = prediction_bytes(trained[0].plan, len(trained))
        require_memory(needed, str(folder), "close other programs, give fewer folds, or train a smaller plan")
    return tuple(Model(checkpoint, device) for checkpoint in trained)


def segment_image(
    image: sitk.Image, models: Sequence[Model], *, average: bool = True, evidence: bool = True
) -> sitk.Image:
    """Segment a 3-D scan in memory: the mask of label values on the scan's own grid, as `rrlsam_predict` writes it.

    `image`: several channels are the components of a voxel (`sitk.Compose`). `average` and `evidence`: what
    `--disable_tta` and `--disable_evidence` switch off. BadInputError for a scan that the models cannot take.
    """
    scan = _checked(image)
    results = [model.predict(scan, average=average, joint=False) for model in models]
    labels, native = models[0].plan.labels, geometry_of(scan)
    found = segmentation_on_native(results, native, labels, scan if evidence else None)
    return image_like(found.mask, scan)


def _checked(image: sitk.Image) -> sitk.Image:
    """The scan in float32; BadInputError if it is none."""
    kind = image.GetPixelIDTypeAsString()
    if "complex" in kind or "label" in kind:
        raise BadInputError(f"the scan has voxels of {kind}; they must be real numbers")
    scan = sitk.Cast(image, sitk.sitkVectorFloat32 if "vector" in kind else sitk.sitkFloat32)
    if scan.GetDimension() != 3 or min(scan.GetSize()) < 2:
        raise BadInputError(f"the scan of size {scan.GetSize()} is not 3-D")
    require_place(Path("the scan"), scan)
    require_finite(Path("the scan"), scan, "replace them by real intensities")
    return scan
