from pathlib import Path

import pytest
import torch

from rrlsam.nets.sam import image_encoder_class


@pytest.fixture(scope="session")
def tiny_sam_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SAM checkpoint in miniature: 64 px, 4 x 4 tokens, blocks windowed, global, windowed."""
    encoder = image_encoder_class()(
        img_size=64,
        embed_dim=32,
        depth=3,
        num_heads=2,
        use_rel_pos=True,
        window_size=2,
        global_attn_indexes=(1,),
        norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
    )
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"image_encoder.{name}": 0.2 * torch.randn(t.shape, generator=generator)
        for name, t in encoder.state_dict().items()
    }
    path = tmp_path_factory.mktemp("sam") / "sam_tiny.pth"
    torch.save({**tensors, "mask_decoder.iou_token.weight": torch.zeros(1, 4)}, path)
    return path
