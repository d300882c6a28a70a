"""What a user may choose: names and defaults that commands and library share, and the options of a training run."""

from dataclasses import dataclass
from pathlib import Path

DEFAULT_PLANS = "rrlsamPlans"
FINAL, LATEST = "checkpoint_final.pt", "checkpoint_latest.pt"
"""Checkpoints of a fold."""
DEFAULT_MEMORY_GB = 1.5
"""What two processor cores work through quickly: in a given time, more steps are worth more than larger patches."""
DEVICES = ("auto", "cuda", "cpu")
METRICS = ("lncc", "mind")
"""How registration without a model compares: local correlation, for scans of one kind; MIND descriptors, for two."""
OPTIMISATION_ITERATIONS = 30
"""Steps of a registration without a model at each resolution."""
QUICK_ITERATIONS = 2
"""Steps by which rrlsam_register refines the field of a model unless told otherwise."""
SAM_MODELS = ("vit_b", "vit_l", "vit_h")
"""Official sizes of SAM's image encoder; the first is the default teacher."""
DISTILLATION_LOSSES = ("mse", "cosine", "l1")
"""How the distance to SAM's features may be measured."""
SAM_AXES = {"z": (0,), "y": (1,), "x": (2,), "all": (0, 1, 2)}
"""Axes along which the teacher may be shown slices, by what the commands call them."""
ABLATIONS = (
    "no_distillation",
    "no_mutual_ema",
    "one_way_ema",
    "no_auto_prompt",
    "no_general_branch",
    "no_refinement",
    "no_prior",
    "bilevel",
)
"""Parts of the method that can be left out or replaced, to see what they are good for."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """A training run as asked for."""

    fold: str
    trainer: str = "default"
    plans_name: str = DEFAULT_PLANS
    atlases: tuple[str, ...] = ()
    """Labelled cases to learn from, the registration's atlas first; none named: the one that serves best."""
    shots: int | None = None
    """How many labels to learn from; None: as many as are named, at least one."""
    sam: str | None = None
    """A release by name, path of the weights, "none", or None: SAM-Base."""
    sam_axes: tuple[int, ...] | None = None
    """Axes (0 = z, 1 = y, 2 = x) along which the teacher sees slices; None: the plan's."""
    general_encoder: Path | None = None
    """A file to start from; None: random weights."""
    time_budget_s: float | None = None
    iterations: int | None = None
    """Iterations of every stage, overriding plan and time budget."""
    ablations: frozenset[str] = frozenset()
    seed: int = 0
    validation_probabilities: bool = False
    """Keep the class probabilities of the held-out cases, beside their masks."""
    resume: bool = False
    overwrite: bool = False
    device: str = "auto"
