"""How far the light encoder's features are from SAM's."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from rrlsam.plan import DistillationKind


def distillation_loss(
    student: Float[Tensor, "b c z y x"], teacher: Float[Tensor, "b c z y x"], kind: DistillationKind = "mse"
) -> Float[Tensor, ""]:
    """Mean over all elements of the squared or absolute difference, or of 1 - cosine of the channel vectors.

    Computed in float32. The paper prints a norm and calls it mean squared error (L_rec); we take the words.
    """
    student, teacher = student.float(), teacher.float()
    if kind == "mse":
        return functional.mse_loss(student, teacher)
    if kind == "l1":
        return functional.l1_loss(student, teacher)
    if kind == "cosine":
        return torch.mean(1 - functional.cosine_similarity(student, teacher, dim=1))
    raise ValueError(f"unknown kind of distillation loss {kind!r}; known: mse, cosine, l1")
