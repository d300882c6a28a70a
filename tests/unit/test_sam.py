import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rrlsam.errors import BadInputError, ResourceError
from rrlsam.nets.sam import (
    SamTeacher,
    build_teacher,
    image_encoder_class,
    read_encoder_weights,
    three_channels,
    unit_range,
)
from rrlsam.nets.sam_weights import encoder_layout

OFFICIAL = {
    "vit_b": (768, 12, 12, (2, 5, 8, 11)),
    "vit_l": (1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": (1280, 32, 16, (7, 15, 23, 31)),
}


class PatchMeans(nn.Module):
    """An encoder whose 256 features are all the mean of the patch's first channel, undoing SAM's normalisation."""

    def forward(self, images: Tensor) -> Tensor:
        means = nn.functional.avg_pool2d(images[:, :1] * 58.395 / 255 + 123.675 / 255, 16)
        return means.expand(-1, 256, -1, -1)


def test_at_its_own_side_the_teacher_equals_segment_anything(
    make_tiny_sam: Callable[[], nn.Module], tiny_sam_checkpoint: Path
):
    weights = read_encoder_weights(tiny_sam_checkpoint)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    encoder = make_tiny_sam()
    encoder.load_state_dict(weights)
    expected = encoder.eval()(images)
    found = build_teacher(weights, 64)(images)
    assert float(expected.detach().std()) > 0.01
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("side_px", [32, 48, 96])
def test_the_teacher_runs_at_other_sides(tiny_sam_checkpoint: Path, side_px: int):
    teacher = build_teacher(read_encoder_weights(tiny_sam_checkpoint), side_px)
    tokens = side_px // 16
    assert teacher(torch.zeros(1, 3, side_px, side_px)).shape == (1, 256, tokens, tokens)


def test_position_tables_of_another_side_are_interpolated(tiny_sam_checkpoint: Path):
    weights = read_encoder_weights(tiny_sam_checkpoint)
    resized = build_teacher(weights, 32).encoder.state_dict()
    blocks_of_four = weights["pos_embed"].reshape(1, 2, 2, 2, 2, 32).mean((2, 4))
    torch.testing.assert_close(resized["pos_embed"], blocks_of_four)
    name = "blocks.1.attn.rel_pos_h"
    assert resized[name].shape == (3, 16)
    torch.testing.assert_close(resized[name][1], weights[name][3])
    torch.testing.assert_close(resized["blocks.0.attn.rel_pos_h"], weights["blocks.0.attn.rel_pos_h"])


def test_a_side_that_is_no_multiple_of_the_patch_is_refused(tiny_sam_checkpoint: Path):
    with pytest.raises(ValueError, match="100 is not a multiple of 16"):
        build_teacher(read_encoder_weights(tiny_sam_checkpoint), 100)


def test_the_teacher_is_frozen(tiny_sam_checkpoint: Path):
    teacher = build_teacher(read_encoder_weights(tiny_sam_checkpoint), 64)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    volume = torch.rand(1, 1, 3, 8, 8, requires_grad=True)
    assert not teacher.features(volume, (2, 2, 2)).requires_grad


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_features_stand_on_the_grid_for_any_number_of_channels(tiny_sam_checkpoint: Path, channels: int):
    teacher = build_teacher(read_encoder_weights(tiny_sam_checkpoint), 64)
    features = teacher.features(torch.rand(1, channels, 6, 20, 30), (3, 2, 5))
    assert features.shape == (1, 256, 3, 2, 5)
    assert features.dtype == torch.float32
    assert bool(features.isfinite().all())


def test_reduced_precision_changes_features_by_little(tiny_sam_checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rrlsam.nets.sam._has_fast_bfloat16", lambda device: True)
    weights = read_encoder_weights(tiny_sam_checkpoint)
    volume = torch.rand(1, 1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    full = build_teacher(weights, 64, reduced_precision=False).features(volume, (4, 4, 4))
    reduced = build_teacher(weights, 64).features(volume, (4, 4, 4))
    assert not torch.equal(full, reduced)
    assert float((full - reduced).pow(2).mean().sqrt()) < 0.05 * float(full.std())


def test_tokens_lie_where_the_voxels_lie():
    z, y, x = torch.meshgrid(torch.arange(4), torch.arange(64), torch.arange(64), indexing="ij")
    volume = (((z >= 2) & (y >= 32)) | (x >= 48)).float()[None, None]
    features = SamTeacher(PatchMeans(), 64, 16, reduced_precision=False).features(volume, (2, 2, 4))
    expected = torch.zeros(2, 2, 4)
    expected[1, 1] = 1
    expected[:, :, 3] = 1
    torch.testing.assert_close(features[0, 7], expected, atol=1e-5, rtol=0)


def test_padding_leaves_no_trace():
    volume = torch.zeros(1, 1, 2, 32, 64)
    volume[:, :, :, 16:] = 1
    features = SamTeacher(PatchMeans(), 64, 16, reduced_precision=False).features(volume, (2, 2, 2))
    expected = torch.tensor([0.0, 1.0])[None, :, None].expand(2, 2, 2)
    torch.testing.assert_close(features[0, 0], expected, atol=1e-5, rtol=0)


def test_intensities_are_scaled_between_percentiles_in_each_channel():
    first = torch.arange(1001.0).reshape(1, 1, 1, 1, 1001)
    scaled = unit_range(torch.cat([first, 7 - 2 * first, torch.full_like(first, 3.0)], dim=1))
    torch.testing.assert_close(scaled[0, 0, 0, 0, [0, 5, 500, 995, 1000]], torch.tensor([0, 0, 0.5, 1, 1]))
    torch.testing.assert_close(scaled[:, 1], 1 - scaled[:, 0])
    assert not scaled[:, 2].any()


def test_channels_are_mapped_to_three():
    volume = torch.arange(4.0).reshape(1, 4, 1, 1, 1)
    found = [three_channels(volume[:, :count]).flatten().tolist() for count in (1, 2, 3, 4)]
    assert found == [[0, 0, 0], [0, 1, 0.5], [0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_sizes_are_recognised(name: str):
    width, depth, heads, global_blocks = OFFICIAL[name]
    with torch.device("meta"):
        encoder = image_encoder_class()(
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=global_blocks,
        )
    layout = encoder_layout(encoder.state_dict())
    assert (layout.width, layout.depth, layout.heads, layout.global_blocks) == OFFICIAL[name]
    assert (layout.window, layout.tokens, layout.patch_px, layout.mlp_ratio) == (14, 64, 16, 4)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_bare_and_wrapped_encoders_are_read(tiny_sam_checkpoint: Path, tmp_path: Path, wrapper: str | None):
    weights = read_encoder_weights(tiny_sam_checkpoint)
    torch.save({wrapper: weights, "epoch": 3} if wrapper else weights, tmp_path / "encoder.pth")
    again = read_encoder_weights(tmp_path / "encoder.pth")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_of_a_whole_model_only_the_encoder_is_read(tiny_sam_checkpoint: Path, tmp_path: Path, prefix: str):
    """As MedSAM's training leaves it: the other parts of SAM, the optimiser, and names of a model on several GPUs."""
    weights = read_encoder_weights(tiny_sam_checkpoint)
    others = ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "mask_decoder.mask_tokens.weight")
    model = {f"{prefix}image_encoder.{name}": tensor for name, tensor in weights.items()}
    model |= {prefix + name: torch.zeros(2, 4) for name in others}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    torch.save({"model": model, "optimizer": optimizer, "epoch": 3}, tmp_path / "medsam.pth")
    again = read_encoder_weights(tmp_path / "medsam.pth")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_a_truncated_checkpoint_is_refused(tiny_sam_checkpoint: Path, tmp_path: Path):
    whole = tiny_sam_checkpoint.read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInputError, match=r"cut\.pth: is damaged or holds more than tensors"):
        read_encoder_weights(tmp_path / "cut.pth")


class Bomb:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.target,))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path):
    torch.save({"image_encoder.pos_embed": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pth")
    with pytest.raises(BadInputError, match="holds more than tensors"):
        read_encoder_weights(tmp_path / "bomb.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds no named tensors"),
        ({"conv.weight": torch.zeros(1)}, r"lacks the tensor patch_embed\.proj\.weight"),
        ({"patch_embed.proj.weight": torch.zeros(2)}, "have shapes that no image encoder has"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, message: str):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(BadInputError, match=message):
        read_encoder_weights(tmp_path / "other.pth")


@pytest.mark.parametrize("change", ["missing", "superfluous", "ill-shaped"])
def test_one_wrong_tensor_is_named(tiny_sam_checkpoint: Path, tmp_path: Path, change: str):
    weights = read_encoder_weights(tiny_sam_checkpoint)
    name = "blocks.2.extra" if change == "superfluous" else "neck.1.bias"
    weights[name] = torch.zeros(3)
    if change == "missing":
        del weights[name]
    torch.save(weights, tmp_path / "wrong.pth")
    with pytest.raises(BadInputError, match=re.escape(name)):
        read_encoder_weights(tmp_path / "wrong.pth")


def test_a_missing_file_is_a_missing_resource(tmp_path: Path):
    with pytest.raises(ResourceError, match=r"absent\.pth: cannot be read"):
        read_encoder_weights(tmp_path / "absent.pth")


def test_torchvision_is_not_needed_and_nothing_is_imported_early(tiny_sam_checkpoint: Path):
    code = (
        "import sys; from pathlib import Path; import rrlsam.teacher.feature_cache, rrlsam.nets.sam as sam\n"
        "early = [m for m in sys.modules if m.startswith('segment_anything')]\n"
        f"sam.build_teacher(sam.read_encoder_weights(Path({str(tiny_sam_checkpoint)!r})), 64)\n"
        "assert not early, early\n"
        "assert 'torchvision' not in sys.modules and 'segment_anything' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="segment-anything is not installed"):
        image_encoder_class()
