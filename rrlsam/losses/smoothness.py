"""How smooth a field is."""

import torch
from jaxtyping import Float
from torch import Tensor


def diffusion(field: Float[Tensor, "b 3 z y x"]) -> Float[Tensor, ""]:
    """Mean squared forward difference, averaged over the three axes; in squared voxels."""
    terms = [field.diff(dim=axis).square().mean() for axis in (2, 3, 4)]
    return torch.stack(terms).mean()
