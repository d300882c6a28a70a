import dataclasses
from pathlib import Path

import pytest
import torch

from rrlsam.errors import BadInputError, ResourceError
from rrlsam.nets.build import build_networks
from rrlsam.teacher.general_encoder import (
    EncoderProvenance,
    GeneralEncoder,
    load_general_encoder,
    save_general_encoder,
    start_from_,
    taken_from,
)

PROVENANCE = EncoderProvenance(teacher="0" * 64, loss="mse", iterations=3, seed=1, scans=2, spacing_mm=(1.0, 1.0, 1.0))


@pytest.fixture
def encoder(make_plan) -> GeneralEncoder:
    plan = make_plan()
    return taken_from(build_networks(plan, seed=1), plan, PROVENANCE)


def test_an_encoder_is_read_as_it_was_written(encoder, tmp_path: Path):
    save_general_encoder(encoder, tmp_path / "encoder.pt")
    again = load_general_encoder(tmp_path / "encoder.pt")
    assert (again.settings, again.provenance) == (encoder.settings, PROVENANCE)
    for part in ("encoder", "projection"):
        assert getattr(again, part).keys() == getattr(encoder, part).keys()
        assert all(torch.equal(getattr(again, part)[name], t) for name, t in getattr(encoder, part).items())


def test_both_encoders_start_from_it(encoder, make_plan):
    nets = build_networks(make_plan(), seed=2)
    decoder = nets.general_decoder.head.weight.detach().clone()
    start_from_(nets, make_plan(), encoder, source="encoder.pt")
    for module in (nets.general_encoder, nets.medical_encoder):
        assert all(torch.equal(tensor, encoder.encoder[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(nets.feature_projection.weight, encoder.projection["weight"])
    assert torch.equal(nets.general_decoder.head.weight, decoder)


def test_an_encoder_of_another_network_is_refused(encoder, make_plan):
    network = dataclasses.replace(make_plan().network, widths=(4, 16))
    plan = make_plan(network=network)
    message = r"encoder\.pt: its network\.widths are \(4, 8\), the plan has \(4, 16\); make one .*rrlsam_distill --plan"
    with pytest.raises(BadInputError, match=message):
        start_from_(build_networks(plan, seed=0), plan, encoder, source="encoder.pt")


def test_an_encoder_of_other_channels_is_refused(encoder, make_plan):
    plan = make_plan(channel_names=("T1", "T2"))
    with pytest.raises(BadInputError, match="its channels are 1, the plan has 2"):
        start_from_(build_networks(plan, seed=0), plan, encoder, source="encoder.pt")


@pytest.mark.parametrize("damage", ["missing", "shape", "infinite"])
def test_tensors_that_do_not_fit_are_refused(encoder, make_plan, damage: str):
    name = next(iter(encoder.encoder))
    if damage == "missing":
        del encoder.encoder[name]
    else:
        encoder.encoder[name] = torch.zeros(1) if damage == "shape" else encoder.encoder[name] / 0
    with pytest.raises(BadInputError, match=r"encoder\.pt: (its tensors|holds numbers)"):
        start_from_(build_networks(make_plan(), seed=0), make_plan(), encoder, source="encoder.pt")


class Bomb:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("content", ["cut", "bomb", "other", "newer"])
def test_anything_else_is_refused_and_runs_no_code(encoder, tmp_path: Path, content: str):
    path = tmp_path / "encoder.pt"
    save_general_encoder(encoder, path)
    if content == "cut":
        path.write_bytes(path.read_bytes()[:500])
    elif content == "bomb":
        torch.save({"encoder": Bomb(tmp_path / "ran")}, path)
    elif content == "other":
        torch.save({"format": 1, "networks": {}}, path)
    else:
        torch.save(torch.load(path, weights_only=True) | {"format": 2}, path)
    with pytest.raises(BadInputError, match=r"encoder\.pt: is .*rrlsam_distill"):
        load_general_encoder(path)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ResourceError, match=r"absent\.pt: cannot be read"):
        load_general_encoder(tmp_path / "absent.pt")
