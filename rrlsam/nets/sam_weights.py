"""What a file of SAM's weights must hold, and what its shapes tell of the encoder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from rrlsam.errors import BadInputError, ResourceError
from rrlsam.system.tensor_files import load_plain

CHANNELS = 256
"""Width of the features of every SAM encoder."""

Weights = dict[str, Tensor]
"""Tensors of an image encoder, float32, named as in segment-anything's ImageEncoderViT."""

_PREFIX = "image_encoder."
_PARALLEL = "module."
"""What a model that was trained on several GPUs puts before every name."""
_WRAPPERS = ("model", "state_dict")
_ADVICE = "expected a SAM checkpoint such as sam_vit_b_01ec64.pth"


@dataclass(frozen=True, kw_only=True)
class EncoderLayout:
    """Sizes of a vision transformer."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float
    patch_px: int
    tokens: int
    """Along one side of the image that the checkpoint was trained on."""
    window: int
    """Tokens along a side of an attention window; 0: every block is global."""
    global_blocks: tuple[int, ...]


def encoder_layout(weights: Weights) -> EncoderLayout:
    """Sizes told by names and shapes; a block is global if its relative positions span the whole image.

    KeyError, ValueError or IndexError where they make no sense.
    """
    width, _, _, patch_px = weights["patch_embed.proj.weight"].shape
    tokens = weights["pos_embed"].shape[1]
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    spans = [weights[f"blocks.{i}.attn.rel_pos_h"].shape[0] for i in range(depth)]
    windowed = [span for span in spans if span != 2 * tokens - 1]
    return EncoderLayout(
        width=width,
        depth=depth,
        heads=width // weights["blocks.0.attn.rel_pos_h"].shape[1],
        mlp_ratio=weights["blocks.0.mlp.lin1.weight"].shape[0] / width,
        patch_px=patch_px,
        tokens=tokens,
        window=(windowed[0] + 1) // 2 if windowed else 0,
        global_blocks=tuple(i for i, span in enumerate(spans) if span == 2 * tokens - 1),
    )


def load_tensors(path: Path) -> Mapping[str, object]:
    """What torch reads from a file without running any code in it; ResourceError or BadInputError."""
    try:
        content = load_plain(path, BadInputError(f"{path}: is damaged or holds more than tensors; {_ADVICE}"))
    except OSError as error:
        reason = error.strerror or error
        raise ResourceError(f"{path}: cannot be read ({reason}); give the path of SAM's weights") from error
    if not isinstance(content, dict):
        raise BadInputError(f"{path}: holds no named tensors; {_ADVICE}")
    return content


def checked_weights(
    content: Mapping[str, object], empty_encoder: Callable[[EncoderLayout, int], nn.Module], *, source: str
) -> Weights:
    """The encoder's tensors out of a checkpoint; BadInputError unless names and shapes are an encoder's."""
    weights = _encoder_tensors(content)
    try:
        layout = encoder_layout(weights)
        expected = {name: tensor.shape for name, tensor in empty_encoder(layout, layout.tokens).state_dict().items()}
    except KeyError as error:
        raise BadInputError(f"{source}: lacks the tensor {error.args[0]} of an image encoder; {_ADVICE}") from error
    except (ValueError, IndexError, RuntimeError, ZeroDivisionError) as error:
        raise BadInputError(f"{source}: its tensors have shapes that no image encoder has; {_ADVICE}") from error
    for name in [*expected, *weights]:
        if name not in weights or name not in expected or weights[name].shape != expected[name]:
            raise BadInputError(f"{source}: the tensor {name} is missing, superfluous or ill-shaped; {_ADVICE}")
    return weights


def _encoder_tensors(content: Mapping[str, object]) -> Weights:
    for wrapper in _WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, dict):
            content = inner
    names = {str(name).removeprefix(_PARALLEL): v for name, v in content.items() if isinstance(v, Tensor)}
    prefixed = {name.removeprefix(_PREFIX): value for name, value in names.items() if name.startswith(_PREFIX)}
    return {name: value.float() for name, value in (prefixed or names).items()}
