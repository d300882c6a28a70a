"""The teachers of benchmarks/distillation.py, pretrained ones and controls, each as a source that `train` takes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from isnet import LAYER, MODEL_SHA256, SIDE_PX, isnet_teacher
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from rrlsam.engine.device import Device
from rrlsam.geometry import Size3
from rrlsam.nets.sam import build_teacher, image_encoder_class, unit_range
from rrlsam.teacher.sam_releases import require_sam
from rrlsam.teacher.slices import SliceTeacher
from rrlsam.teacher.teaching import TeacherSource, sam_source

STAND_IN = "isnet"
RANDOM_SEED = 1
RANDOM_SAM_SIDE_PX = 256
CHANNELS = 256


def source_of(name: str, downloads: Path, stride: int) -> TeacherSource:
    """A teacher by name; one that is neither the stand-in nor a control is SAM's, as `--sam` names it."""
    if name == STAND_IN:
        return _source((MODEL_SHA256, LAYER, "norm"), SIDE_PX, stride, lambda side: isnet_teacher(downloads))
    if name == "random_isnet":
        parts = (MODEL_SHA256, LAYER, "norm", RANDOM_SEED)
        return _source(parts, SIDE_PX, stride, lambda side: isnet_teacher(downloads, seed=RANDOM_SEED))
    if name == "random_sam":
        return _source((name, RANDOM_SEED), RANDOM_SAM_SIDE_PX, stride, random_sam)
    if name == "intensity":
        return _source((name, RANDOM_SEED), 1, 1, lambda side: Intensities())
    sam = require_sam(name)
    if sam is None:
        raise SystemExit(f"--teacher {name}: a teacher is needed")
    named = sam_source(sam)
    build = named.build
    if build is None:
        raise SystemExit(f"--teacher {name}: cannot be built")
    return TeacherSource(
        teacher_id=digest(sam.sha256, stride), build=lambda side, device: EveryNth(build(side, device), stride)
    )


class EveryNth:
    """Shows a teacher only every n-th slice, from the middle of the first n."""

    def __init__(self, teacher: SliceTeacher, stride: int) -> None:
        self._teacher, self._stride = teacher, stride

    def features(self, volume: Float[Tensor, "1 c z y x"], grid: Size3) -> Float[Tensor, "1 256 gz gy gx"]:
        """Of the slices that are left, on the grid of all."""
        return self._teacher.features(volume[:, :, self._stride // 2 :: self._stride], grid)

    def seconds_per_slice(self, volume: Float[Tensor, "1 c z y x"]) -> float:
        """Mean over all slices, seen or not."""
        return self._teacher.seconds_per_slice(volume) / self._stride


class Intensities:
    """A control that knows nothing but grey values."""

    def features(self, volume: Float[Tensor, "1 c z y x"], grid: Size3) -> Float[Tensor, "1 256 gz gy gx"]:
        """Projections of each cell's voxels."""
        return projected(unit_range(volume), grid)

    def seconds_per_slice(self, volume: Float[Tensor, "1 c z y x"]) -> float:
        """Next to nothing."""
        return 1e-4


def projected(maps: Float[Tensor, "1 k z y x"], grid: Size3) -> Float[Tensor, "1 256 gz gy gx"]:
    """All numbers in each cell of a grid, projected to 256 random directions; about zero mean and unit variance."""
    (depth, rows, columns) = grid
    z, y, x = (-(-n // cells) for n, cells in zip(maps.shape[2:], grid, strict=True))
    fitted = functional.interpolate(maps.float(), (depth * z, rows * y, columns * x))
    cells = fitted.reshape(1, -1, depth, z, rows, y, columns, x).permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
    cells = (cells - cells.mean()) / cells.std()
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    directions = torch.randn(CHANNELS, cells.shape[1], generator=generator) / cells.shape[1] ** 0.5
    return torch.einsum("kp,bpzyx->bkzyx", directions.to(cells), cells)


def random_sam(side_px: int) -> SliceTeacher:
    """SAM-Base with the weights that its own code draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        encoder = image_encoder_class()(
            embed_dim=768,
            depth=12,
            num_heads=12,
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=(2, 5, 8, 11),
            norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
        )
    return build_teacher({name: tensor.detach() for name, tensor in encoder.state_dict().items()}, side_px)


def _source(
    parts: tuple[object, ...], side_px: int, stride: int, build: Callable[[int], SliceTeacher]
) -> TeacherSource:
    def made(side_px: int, device: Device) -> SliceTeacher:
        if device.place.type != "cpu":
            raise SystemExit("stand-in and controls run on the CPU: give CUDA_VISIBLE_DEVICES= or -device cpu")
        return EveryNth(build(side_px), stride)

    return TeacherSource(teacher_id=digest(*parts, stride), build=made, side_px=side_px)


def digest(*parts: object) -> str:
    """The id of a teacher that is made of these."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()
