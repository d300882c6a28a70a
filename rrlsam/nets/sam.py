"""SAM's image encoder as a frozen teacher, through segment-anything's own modelling code."""

import importlib
import importlib.util
import sys
import time
import types
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rrlsam.errors import ResourceError
from rrlsam.geometry import Size3
from rrlsam.nets.sam_weights import CHANNELS, EncoderLayout, Weights, checked_weights, encoder_layout, load_tensors

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""SAM's normalisation of red, green and blue in [0, 255]."""

_TOKENS_A_BATCH = 4096
"""16 slices at 256 px, one at 1024 px: the attention of such a batch takes less than 1 GiB."""


class SamTeacher(nn.Module):
    """A frozen image encoder that sees volumes slice by slice."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, encoder: nn.Module, side_px: int, patch_px: int, *, reduced_precision: bool = True):
        super().__init__()
        self.encoder = encoder
        self.side_px = side_px
        self.patch_px = patch_px
        self.reduced_precision = reduced_precision
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN)[:, None, None] / 255, persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD)[:, None, None] / 255, persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Float[Tensor, "b 3 side side"]) -> Float[Tensor, "b 256 tokens tokens"]:
        """The encoder itself, on normalised and padded images, in the precision of its weights."""
        return self.encoder(images)

    @torch.no_grad()
    def features(self, volume: Float[Tensor, "1 c z y x"], grid: Size3) -> Float[Tensor, "1 256 grid_z grid_y grid_x"]:
        """Features of all slices along z, averaged to `grid` (z, y, x) spanning the same box as the volume.

        Each channel is scaled to [0, 1] between its 0.5 and 99.5 percentiles. One channel is shown three times,
        two as (a, b, mean), of more the first three. Bfloat16 where that is faster.
        """
        slices = three_channels(unit_range(volume))[0].movedim(1, 0).split(self._slices_a_batch)
        parts = [self._slice_features(part.to(self.pixel_mean.device), grid) for part in slices]
        return align_to_grid(torch.cat(parts, dim=2), grid)

    @torch.no_grad()
    def seconds_per_slice(self, volume: Float[Tensor, "1 c z y x"]) -> float:
        """How long a slice of such volumes takes here: one slice is timed, on a GPU one batch.

        What took less than a second is timed again, since a first time is slower.
        """
        place = self.pixel_mean.device
        count = 1 if place.type == "cpu" else self._slices_a_batch
        trial = three_channels(volume[:, :, :count].float())[0].movedim(1, 0).to(place)
        first = self._timed(trial)
        return (first if first > 1 else self._timed(trial)) / len(trial)

    @property
    def _slices_a_batch(self) -> int:
        return max(1, _TOKENS_A_BATCH // (self.side_px // self.patch_px) ** 2)

    def _timed(self, slices: Float[Tensor, "n 3 y x"]) -> float:
        began = time.perf_counter()
        self._slice_features(slices, (1, 1, 1)).sum().item()  # the number is waited for, on a GPU too
        return time.perf_counter() - began

    def _slice_features(self, slices: Float[Tensor, "n 3 y x"], grid: Size3) -> Float[Tensor, "1 256 n grid_y grid_x"]:
        rows, columns = self._tokens_covered(slices.shape[2], slices.shape[3])
        height, width = rows * self.patch_px, columns * self.patch_px
        images = functional.interpolate(slices, (height, width), mode="bilinear", antialias=True)
        images = (images - self.pixel_mean) / self.pixel_std
        images = functional.pad(images, (0, self.side_px - width, 0, self.side_px - height))
        with self._precision():
            tokens = self(images)
        tokens = tokens.float()[:, :, :rows, :columns].movedim(0, 1)[None]
        return align_to_grid(tokens, (len(slices), grid[1], grid[2]))

    def _tokens_covered(self, height: int, width: int) -> tuple[int, int]:
        """Size in tokens that fits the side; whole tokens, so that none mixes image and padding."""
        tokens = self.side_px // self.patch_px
        longest = max(height, width)
        return max(1, round(height * tokens / longest)), max(1, round(width * tokens / longest))

    def _precision(self) -> AbstractContextManager[object]:
        device = self.pixel_mean.device
        if not self.reduced_precision or not _has_fast_bfloat16(device):
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)


def read_encoder_weights(path: Path) -> Weights:
    """The image encoder's tensors in a SAM checkpoint, a wrapped one, or a bare encoder's (MedSAM's too).

    Raises ResourceError if the file can't be opened, BadInputError if it holds anything else.
    """
    return checked_weights(load_tensors(path), _empty_encoder, source=str(path))


def build_teacher(weights: Weights, side_px: int, *, reduced_precision: bool = True) -> SamTeacher:
    """The encoder for square images of `side_px`, a multiple of the patch (16).

    At another side than the checkpoint's own, position tables are interpolated (bi)linearly, as SAMed does.
    """
    layout = encoder_layout(weights)
    tokens, rest = divmod(side_px, layout.patch_px)
    if rest or tokens < 1:
        raise ValueError(f"side_px {side_px} is not a multiple of {layout.patch_px}")
    encoder = _empty_encoder(layout, tokens)
    encoder.load_state_dict(_at_side(weights, layout, tokens), assign=True)
    return SamTeacher(encoder, side_px, layout.patch_px, reduced_precision=reduced_precision)


def empty_sam_base() -> nn.Module:
    """SAM-Base's image encoder, sizes only: its tensors have no memory."""
    blocks = (2, 5, 8, 11)
    layout = EncoderLayout(
        width=768, depth=12, heads=12, mlp_ratio=4.0, patch_px=16, tokens=64, window=14, global_blocks=blocks
    )
    return _empty_encoder(layout, layout.tokens)


def unit_range(volume: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
    """Each channel's 0.5 to 99.5 percentiles (nearest rank) to [0, 1], clipped; a constant channel to 0."""
    values = volume.float().flatten(2)
    last = values.shape[2] - 1
    low, high = (values.kthvalue(round(share * last) + 1, dim=2).values for share in (0.005, 0.995))
    low, high = (bound[..., None, None, None] for bound in (low, high))
    return torch.where(high > low, (volume.float() - low) / (high - low), 0).clamp(0, 1)


def three_channels(volume: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b 3 z y x"]:
    """One channel three times; two as (a, b, mean); of three and more the first three."""
    if volume.shape[1] == 1:
        return volume.expand(-1, 3, -1, -1, -1)
    if volume.shape[1] == 2:
        return torch.cat([volume, volume.mean(dim=1, keepdim=True)], dim=1)
    return volume[:, :3]


def align_to_grid(tokens: Float[Tensor, "b c z y x"], grid: Size3) -> Float[Tensor, "b c grid_z grid_y grid_x"]:
    """Average where the grid is coarser than the tokens, interpolate linearly where it is finer."""
    depth, height, width = (min(n, target) for n, target in zip(tokens.shape[2:], grid, strict=True))
    pooled = functional.adaptive_avg_pool3d(tokens, (depth, height, width))
    if (depth, height, width) == grid:
        return pooled
    return functional.interpolate(pooled, grid, mode="trilinear", align_corners=False)


def image_encoder_class() -> Callable[..., nn.Module]:
    """segment-anything's ImageEncoderViT.

    The package's own `__init__` needs torchvision, so an empty parent stands in for it during the import.
    """
    package = "segment_anything"
    stand_in = package not in sys.modules
    if stand_in:
        found = importlib.util.find_spec(package)
        if found is None or found.submodule_search_locations is None:
            raise ResourceError("segment-anything is not installed; run: pip install segment-anything")
        parent = types.ModuleType(package)
        parent.__path__ = list(found.submodule_search_locations)
        sys.modules[package] = parent
    try:
        return importlib.import_module(f"{package}.modeling.image_encoder").ImageEncoderViT
    finally:
        if stand_in:
            del sys.modules[package]


def _empty_encoder(layout: EncoderLayout, tokens: int) -> nn.Module:
    """An encoder whose tensors have shapes but no memory."""
    with torch.device("meta"):
        return image_encoder_class()(
            img_size=tokens * layout.patch_px,
            patch_size=layout.patch_px,
            embed_dim=layout.width,
            depth=layout.depth,
            num_heads=layout.heads,
            mlp_ratio=layout.mlp_ratio,
            out_chans=CHANNELS,
            norm_layer=_layer_norm,
            use_rel_pos=True,
            window_size=layout.window,
            global_attn_indexes=layout.global_blocks,
        )


def _layer_norm(width: int) -> nn.Module:
    return nn.LayerNorm(width, eps=1e-6)


def _at_side(weights: Weights, layout: EncoderLayout, tokens: int) -> Mapping[str, Tensor]:
    if tokens == layout.tokens:
        return weights
    resized = dict(weights)
    position = weights["pos_embed"].permute(0, 3, 1, 2)
    position = functional.interpolate(position, (tokens, tokens), mode="bilinear", align_corners=False)
    resized["pos_embed"] = position.permute(0, 2, 3, 1).contiguous()
    for block in layout.global_blocks:
        for axis in "hw":
            name = f"blocks.{block}.attn.rel_pos_{axis}"
            table = functional.interpolate(weights[name].T[None], 2 * tokens - 1, mode="linear", align_corners=False)
            resized[name] = table[0].T.contiguous()
    return resized


def _has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 pays: on a CPU only with AMX tiles; with avx512_bf16 alone ViT-B took 1.5 times as long."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    information = Path("/proc/cpuinfo")
    return device.type == "cpu" and information.is_file() and "amx_bf16" in information.read_text(errors="replace")
