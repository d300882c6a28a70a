"""How large a model is and what a scan costs it: counted on networks without memory, nothing is computed."""

import math
import weakref
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from rrlsam.data.augment import views_to_average
from rrlsam.geometry import Size3, tiles
from rrlsam.nets.build import Networks
from rrlsam.nets.light_encoder import count_parameters
from rrlsam.nets.sam import empty_sam_base
from rrlsam.plan import Plan
from rrlsam.system.jsonio import record

ATLAS_MAPS, RESULT_MAPS, WORKING_MAPS = 2, 1, 2
"""Volumes of the fine grid with a channel a class: the atlas's label and prior, a model's probabilities, sums."""


@record
class ModelSize:
    """Numbers of parameters, and what the networks take for one scan."""

    teacher: int
    """SAM-Base's image encoder."""
    light_encoder: int
    """Each of the two."""
    ratio: float
    """Light encoder over teacher."""
    general_decoder: int
    registration_decoder: int
    auto_prompt_decoder: int
    prediction: int
    """All that prediction needs: both encoders and the three decoders."""
    flops_per_scan: int
    """Floating-point operations of the networks, a multiplication and an addition being two; alignment, refinement and
    resampling are not networks."""
    views_per_scan: int
    """Times that the segmentation looks at the scan or at a patch of it."""
    peak_memory_mb: float
    """10^6 bytes of weights and of the largest set of activations that live together, in float32."""


class _LiveBytes(TorchDispatchMode):
    """Adds up the tensors that are alive; `peak` is the most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: tuple[type, ...],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Run the operation and look at what it made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._watch(tensor)
        return made

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.remove(key)
        self.live -= size


def model_size(plan: Plan) -> ModelSize:
    """Count everything of a plan's networks."""
    nets, scan, patch = _empty(plan)
    nets.eval()
    with torch.device("meta"):
        teacher = empty_sam_base()
    looks, sides = _looks(plan), 1 if plan.reflection is None else 2
    registering, registering_peak = _cost(lambda: _register(nets, scan))
    segmenting, segmenting_peak = _cost(lambda: _segment(nets, patch))
    decoders = (nets.general_decoder, nets.registration_decoder, nets.auto_prompt_decoder)
    encoders = (nets.general_encoder, nets.medical_encoder)
    prediction = count_parameters([*encoders, *decoders])
    light, large = count_parameters([nets.general_encoder]), count_parameters([teacher])
    return ModelSize(
        teacher=large,
        light_encoder=light,
        ratio=light / large,
        general_decoder=count_parameters(decoders[:1]),
        registration_decoder=count_parameters(decoders[1:2]),
        auto_prompt_decoder=count_parameters(decoders[2:]),
        prediction=prediction,
        flops_per_scan=sides * (registering + looks * segmenting),
        views_per_scan=sides * looks,
        peak_memory_mb=(4 * prediction + max(registering_peak, segmenting_peak)) / 1e6,
    )


def prediction_bytes(plan: Plan, n_models: int = 1) -> int:
    """Memory that prediction takes at least: activations in half precision, and volumes of all classes."""
    nets, scan, patch = _empty(plan)
    largest = max(_peak(lambda: _register(nets, scan)), _peak(lambda: _segment(nets, patch)))
    return largest // 2 + (n_models * (ATLAS_MAPS + RESULT_MAPS) + WORKING_MAPS) * _map_bytes(plan)


def training_bytes(plan: Plan) -> int:
    """Memory that a step of stage 2 takes at least: what the networks keep for the gradient, in half precision, and
    volumes of all classes."""
    nets, scan, patch = _empty(plan)
    with _LiveBytes() as memory:
        pyramids = nets.medical_encoder(scan), nets.medical_encoder(scan)
        prompt = nets.general_decoder(nets.general_encoder(patch)).softmax(1)
        kept = nets.registration_decoder(*pyramids), nets.auto_prompt_decoder(nets.medical_encoder(patch), prompt)
        del kept
    return memory.peak // 2 + ATLAS_MAPS * _map_bytes(plan)


def _map_bytes(plan: Plan) -> int:
    return torch.float32.itemsize * plan.labels.n_classes * math.prod(plan.grid.size_vox)


def _empty(plan: Plan) -> tuple[Networks, Tensor, Tensor]:
    """Networks, a scan and a patch without memory."""
    with torch.device("meta"):
        scan = torch.zeros(1, len(plan.channel_names), *plan.grid.registration_size_vox)
        return Networks(plan), scan, torch.zeros(1, len(plan.channel_names), *plan.grid.patch_vox)


def _looks(plan: Plan) -> int:
    """As inference does: turned views of the whole grid, or patches of it."""
    size: Size3 = plan.grid.size_vox
    if plan.grid.whole:
        return len(views_to_average(plan.augmentation, size, plan.data.spacing_mm))
    return len(list(tiles(size, plan.grid.patch_vox, 0.5)))


def _register(nets: Networks, scan: Tensor) -> None:
    nets.registration_decoder(nets.medical_encoder(scan), nets.medical_encoder(scan))


def _segment(nets: Networks, patch: Tensor) -> None:
    prompt = nets.general_decoder(nets.general_encoder(patch)).softmax(1)
    nets.auto_prompt_decoder(nets.medical_encoder(patch), prompt)


def _cost(work: Callable[[], None]) -> tuple[int, int]:
    """Floating-point operations and the most bytes of activations."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops(), _peak(work)


def _peak(work: Callable[[], None]) -> int:
    with torch.no_grad(), _LiveBytes() as memory:
        work()
    return memory.peak
