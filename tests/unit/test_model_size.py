import json

import pytest
import torch
from torch import nn

from rrlsam.cli import info
from rrlsam.models.model_size import _LiveBytes, model_size
from rrlsam.nets.build import build_networks
from rrlsam.nets.light_encoder import count_parameters
from rrlsam.plan import SAM_BASE_ENCODER_PARAMETERS, GridPlan
from rrlsam.system.jsonio import save_json


def operations(nets: nn.Module, work) -> int:
    """Two for each multiplication of all convolutions, counted while they run."""
    total = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.ConvTranspose3d):  # every input voxel is spread over the kernel
            total += 2 * inputs[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Conv3d):
            total += 2 * output.numel() * module.weight[0].numel()

    handles = [module.register_forward_hook(count) for module in nets.modules()]
    with torch.no_grad():
        work()
    for handle in handles:
        handle.remove()
    return total


def test_parameters_are_those_of_the_real_networks(make_plan):
    size, nets = model_size(make_plan()), build_networks(make_plan(), seed=0)
    assert size.teacher == SAM_BASE_ENCODER_PARAMETERS
    assert size.light_encoder == count_parameters([nets.general_encoder])
    assert size.ratio == pytest.approx(nets.encoder_ratio)
    assert size.prediction == count_parameters([nets]) - count_parameters([nets.feature_projection])
    decoders = size.general_decoder + size.registration_decoder + size.auto_prompt_decoder
    assert size.prediction == 2 * size.light_encoder + decoders


def test_operations_are_those_of_a_prediction(make_plan):
    plan = make_plan()
    nets = build_networks(plan, seed=0)
    scan = torch.zeros(1, 1, *plan.grid.size_vox)
    register = operations(
        nets, lambda: nets.registration_decoder(nets.medical_encoder(scan), nets.medical_encoder(scan))
    )

    def segment() -> None:
        prompt = nets.general_decoder(nets.general_encoder(scan)).softmax(1)
        nets.auto_prompt_decoder(nets.medical_encoder(scan), prompt)

    size = model_size(plan)
    assert size.views_per_scan == 10
    assert size.flops_per_scan == register + 10 * operations(nets, segment)


def test_a_grid_of_patches_costs_every_patch(make_plan):
    grid = GridPlan(
        start_vox=(0, 0, 0), size_vox=(32, 16, 16), registration_size_vox=(16, 8, 8), patch_vox=(16, 16, 16)
    )
    assert model_size(make_plan(grid=grid)).views_per_scan == 3


def test_only_what_lives_at_once_counts_as_memory():
    with torch.no_grad(), _LiveBytes() as memory:
        first = torch.zeros(1000, device="meta")
        second = first + 1
        del first
        third = second * 2
        third.add_(1)
        view = third.view(10, 100)
    assert memory.peak == 8000
    assert memory.live == 8000
    assert view.shape == (10, 100)
    del second
    assert memory.live == 4000


def test_memory_holds_weights_and_the_finest_maps(make_plan):
    plan = make_plan()
    size = model_size(plan)
    finest = 4 * plan.network.widths[0] * 16**3
    assert size.peak_memory_mb > (4 * size.prediction + 2 * finest) / 1e6
    assert size.peak_memory_mb < (4 * size.prediction + 20 * finest) / 1e6


def test_the_command_tells_of_a_plan(make_plan, tmp_path, capsys):
    save_json(make_plan(), tmp_path / "plan.json")
    assert info.main(["--plan", str(tmp_path / "plan.json")]) == 0
    output = capsys.readouterr().out
    assert "89,670,912 parameters" in output
    assert "of the teacher" in output
    assert info.main(["--plan", str(tmp_path / "plan.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["teacher"] == SAM_BASE_ENCODER_PARAMETERS


def test_a_missing_plan_is_named(tmp_path, capsys):
    assert info.main(["--plan", str(tmp_path / "plan.json")]) == 3
    assert "plan.json: no such file" in capsys.readouterr().err
