"""What each stage moves, what its losses are made of, and where gradients flow."""

import dataclasses

import pytest
import torch
from torch import nn

from rrlsam.data.batches import Batch, View
from rrlsam.engine import fit as engine
from rrlsam.engine.fit import Run
from rrlsam.errors import BadInputError
from rrlsam.losses.segmentation import dice_and_cross_entropy
from rrlsam.nets.build import Networks
from rrlsam.nets.displacement import identity_grid
from rrlsam.plan import Plan
from rrlsam.registry import get_trainer
from rrlsam.stages.bilevel import response_of_segmentation
from rrlsam.stages.distil_sam import DistilSam
from rrlsam.stages.joint_reg_seg import JointRegSeg
from rrlsam.stages.mutual_learning import EMA_DECAY, MutualLearning
from rrlsam.stages.pseudo_labels import agreement, pseudo_label
from rrlsam.stages.state import LossTerms, Stage
from rrlsam.system.jsonio import load_json, save_json

SIZE = (16, 16, 16)
REGISTRATION_TERMS = {"similarity", "smoothness", "agreement"}


@pytest.fixture
def run(make_run) -> Run:
    made = make_run()
    with torch.no_grad():  # a field that is not at rest, so that gradients reach beyond the head
        head = made.nets.registration_decoder.head
        head.weight.copy_(0.05 * torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(3)))
        nn.init.ones_(made.nets.auto_prompt_decoder.prompt.norm.weight)
    return made


@pytest.fixture
def settings(make_plan):
    return make_plan().joint


def one_step(stage: Stage, run: Run, iteration: int = 0) -> dict[str, float]:
    return engine.step(stage, run, engine._optimizer(stage, run.nets), iteration)[0]


def loss_of(stage: Stage, run: Run) -> LossTerms:
    batch = run.batches.draw(stage.name, 0, 1, augment=False, patches=stage.uses_patches)
    run.nets.requires_grad_(True)
    return stage.loss(run.nets, run.atlas, batch)


def has_gradient(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


def give_features(run: Run) -> None:
    generator = torch.Generator().manual_seed(0)
    run.batches.features = {case: torch.randn(256, 8, 8, 8, generator=generator).numpy() for case in run.batches.cases}


MEDICAL = {"medical_encoder", "registration_decoder", "auto_prompt_decoder"}
STAGES = {
    "distillation": (DistilSam, {}, {"general_encoder", "feature_projection"}),
    "joint": (JointRegSeg, {}, MEDICAL),
    "mutual": (MutualLearning, {}, MEDICAL | {"general_encoder", "general_decoder"}),
    "without_ema": (MutualLearning, {"ema": "off"}, MEDICAL | {"general_encoder", "general_decoder"}),
    "without_general_branch": (MutualLearning, {"general_branch": False}, MEDICAL),
    "bilevel": (MutualLearning, {"bilevel": True}, MEDICAL | {"general_encoder", "general_decoder"}),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_moves_its_own_weights_and_no_others(run, settings, weights_of, name):
    kind, fields, moving = STAGES[name]
    give_features(run)
    before = weights_of(run.nets)
    one_step(kind(settings, **fields), run)
    after = run.nets.state_dict()
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == moving


def test_the_prompt_rests_while_the_medical_branch_learns_alone(run, settings, weights_of):
    before = weights_of(run.nets.auto_prompt_decoder.prompt)
    one_step(JointRegSeg(settings), run)
    after = run.nets.auto_prompt_decoder.prompt.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_prompt_learns_in_mutual_learning(run, settings, weights_of):
    before = weights_of(run.nets.auto_prompt_decoder.prompt)
    one_step(MutualLearning(settings), run)
    after = run.nets.auto_prompt_decoder.prompt.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_distillation_has_one_term(run, settings):
    give_features(run)
    assert set(one_step(DistilSam(settings), run)) == {"distillation"}


def test_distillation_without_features_is_refused(run, settings):
    with pytest.raises(ValueError, match="holds no teacher features"):
        one_step(DistilSam(settings), run)


def test_joint_learning_has_the_terms_of_the_paper(run, settings):
    assert set(one_step(JointRegSeg(settings), run)) == REGISTRATION_TERMS | {"segmentation"}


def test_mutual_learning_has_a_segmentation_term_for_each_branch(run, settings):
    terms = one_step(MutualLearning(settings), run)
    assert set(terms) == REGISTRATION_TERMS | {"general_segmentation", "medical_segmentation"}


def test_the_total_is_the_sum_of_the_terms():
    losses = LossTerms({"a": torch.tensor(1.5), "b": torch.tensor(2.0)})
    assert float(losses.total) == 3.5
    assert losses.numbers() == {"a": 1.5, "b": 2.0}


@pytest.mark.parametrize(
    ("kind", "term"),
    [
        (JointRegSeg, "segmentation"),
        (MutualLearning, "general_segmentation"),
        (MutualLearning, "medical_segmentation"),
    ],
)
def test_no_gradient_reaches_the_registration_through_pseudo_labels(run, settings, kind, term):
    loss_of(kind(settings), run).terms[term].backward()
    assert not has_gradient(run.nets.registration_decoder)


@pytest.mark.parametrize("kind", [JointRegSeg, MutualLearning])
def test_the_agreement_teaches_the_registration_and_not_the_segmentation(run, settings, kind):
    loss_of(kind(settings), run).terms["agreement"].backward()
    assert has_gradient(run.nets.registration_decoder)
    assert not has_gradient(run.nets.auto_prompt_decoder)


@pytest.mark.parametrize("term", ["similarity", "smoothness"])
def test_similarity_and_smoothness_teach_the_registration(run, settings, term):
    loss_of(JointRegSeg(settings), run).terms[term].backward()
    assert has_gradient(run.nets.registration_decoder)


def test_the_prompt_carries_no_gradient_into_the_general_branch(run, settings):
    loss_of(MutualLearning(settings), run).terms["medical_segmentation"].backward()
    assert not has_gradient(run.nets.general_decoder)
    assert not has_gradient(run.nets.general_encoder)


def test_unprompted_learning_leaves_the_prompt_without_gradient(run, settings):
    loss_of(MutualLearning(settings, prompted=False), run).total.backward()
    assert not has_gradient(run.nets.auto_prompt_decoder.prompt)
    assert has_gradient(run.nets.general_decoder)


def test_without_a_general_branch_there_is_no_term_of_it(run, settings):
    losses = loss_of(MutualLearning(settings, general_branch=False), run)
    assert set(losses.terms) == REGISTRATION_TERMS | {"medical_segmentation"}


def _distance(nets: Networks) -> float:
    pairs = zip(nets.general_encoder.parameters(), nets.medical_encoder.parameters(), strict=True)
    return sum(float((a - b).detach().abs().sum()) for a, b in pairs)


@pytest.mark.parametrize(("ema", "kept"), [("mutual", EMA_DECAY**2), ("one_way", EMA_DECAY), ("off", 1.0)])
def test_the_encoders_pull_each_other_as_asked_for(run, settings, ema, kept):
    with torch.no_grad():
        for parameter in run.nets.general_encoder.parameters():
            parameter += 1
    before = _distance(run.nets)
    MutualLearning(settings, ema=ema).after_step(run.nets)
    assert _distance(run.nets) == pytest.approx(before * kept, rel=1e-4)


def test_only_the_general_encoder_follows_one_way(run, settings, weights_of):
    before = weights_of(run.nets.medical_encoder)
    with torch.no_grad():
        next(run.nets.general_encoder.parameters()).add_(1)
    MutualLearning(settings, ema="one_way").after_step(run.nets)
    after = run.nets.medical_encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_without_sam_the_general_branch_starts_from_the_medical_one(run, settings):
    one_step(JointRegSeg(settings), run)
    MutualLearning(settings, follow_medical=True).begin(run.nets)
    for follower, leader in (
        (run.nets.general_encoder, run.nets.medical_encoder),
        (run.nets.general_decoder, run.nets.auto_prompt_decoder.segmentation),
    ):
        theirs = leader.state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in follower.state_dict().items())


def test_after_distillation_the_general_encoder_keeps_what_it_learnt(run, settings, weights_of):
    before = weights_of(run.nets.general_encoder)
    one_step(JointRegSeg(settings), run)
    MutualLearning(settings).begin(run.nets)
    assert all(torch.equal(before[name], tensor) for name, tensor in run.nets.general_encoder.state_dict().items())


def _stages(make_plan, *ablations: str, distil: bool = True, rounds: int = 2) -> tuple[Stage, ...]:
    return get_trainer("default").stages(make_plan(rounds=rounds), distil=distil, ablations=frozenset(ablations))


def test_the_stages_are_distillation_joint_learning_and_the_rounds(make_plan):
    names = [stage.name for stage in _stages(make_plan)]
    assert names == ["distil_sam", "joint_reg_seg", "mutual_learning_1", "mutual_learning_2"]


def test_without_sam_nothing_is_distilled_and_the_first_round_follows_the_medical_branch(make_plan):
    _, first, second = _stages(make_plan, distil=False)
    assert isinstance(first, MutualLearning)
    assert isinstance(second, MutualLearning)
    assert first.follow_medical
    assert not second.follow_medical


@pytest.mark.parametrize(
    ("ablation", "field", "value"),
    [
        ("no_mutual_ema", "ema", "off"),
        ("one_way_ema", "ema", "one_way"),
        ("no_auto_prompt", "prompted", False),
        ("no_general_branch", "general_branch", False),
    ],
)
def test_an_ablation_changes_its_own_field_in_every_round(make_plan, ablation, field, value):
    for whole, stage in zip(_stages(make_plan)[2:], _stages(make_plan, ablation)[2:], strict=True):
        assert dataclasses.asdict(stage) == dataclasses.asdict(whole) | {field: value}  # pyright: ignore


def test_the_bilevel_term_teaches_the_registration_and_not_the_segmentation(run, settings):
    term = loss_of(MutualLearning(settings, bilevel=True), run).terms["bilevel"]
    assert float(term.detach()) != 0
    term.backward()
    assert has_gradient(run.nets.registration_decoder)
    assert not has_gradient(run.nets.auto_prompt_decoder)


def test_bilevel_learning_uses_the_networks_own_fields(make_plan):
    stages = _stages(make_plan, "bilevel")[2:]
    assert all(isinstance(s, MutualLearning) and s.bilevel and s.refinement_iterations == 0 for s in stages)


def test_the_response_of_the_segmentation_is_bi_jros_rank_one_term():
    """One voxel, two classes, one parameter: every derivative by hand."""
    theta = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    share = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    logits = torch.stack([torch.zeros((), dtype=torch.float64), theta]).view(1, 2, 1, 1, 1)
    label = torch.stack([1 - share, share]).view(1, 2, 1, 1, 1)
    term = response_of_segmentation(logits.log_softmax(1), (label, torch.ones_like(share).view(1, 1, 1, 1, 1)), [theta])

    def dice(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        p, soft = torch.sigmoid(t), 1e-5
        scores = [(2 * a * b + soft) / (a + b + soft) for a, b in ((1 - p, 1 - y), (p, y))]
        return 1 - (scores[0] + scores[1]) / 2

    def lower(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return dice(t, y) - y * torch.log(torch.sigmoid(t)) - (1 - y) * torch.log(1 - torch.sigmoid(t))

    def slope(loss, of: str) -> torch.Tensor:
        t, y = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, 0.8))
        return torch.autograd.grad(loss(t, y), t if of == "t" else y)[0]

    c = slope(dice, "t") / slope(lower, "t")
    (gradient,) = torch.autograd.grad(term, share)
    assert float(gradient) == pytest.approx(float(-c * slope(lower, "y")), rel=1e-4)


@pytest.fixture
def ignoring(make_run, make_plan) -> Run:
    """A run whose atlas nobody labelled in its first three slices; no field yet, so they stay there."""
    labels = dataclasses.replace(make_plan().labels, ignore=3)
    return make_run(labels=labels)


@pytest.mark.parametrize(("where", "counts"), [(slice(0, 3), False), (slice(3, None), True)])
def test_voxels_without_a_label_do_not_count(ignoring, settings, where, counts):
    def segmentation(shift: float) -> float:
        def shifted(module: nn.Module, given: object, logits: torch.Tensor) -> torch.Tensor:
            logits = logits.clone()
            logits[:, 1, where] += shift
            return logits

        hook = ignoring.nets.auto_prompt_decoder.register_forward_hook(shifted)
        try:
            return loss_of(JointRegSeg(settings), ignoring).numbers()["segmentation"]
        finally:
            hook.remove()

    assert (segmentation(5.0) != pytest.approx(segmentation(0.0), abs=1e-6)) is counts


def test_a_scans_own_label_stands_in_for_pseudo_label_and_probabilities(run):
    drawn = run.batches.draw("a", 0, 2, augment=False, patches=False)
    own = nn.functional.one_hot(torch.randint(0, 3, SIZE), 3).movedim(-1, 0).float()
    batch = dataclasses.replace(drawn, truth=(None, own))
    places = identity_grid(SIZE, torch.zeros(())).expand(2, -1, -1, -1, -1)
    label, weight = pseudo_label(run.atlas, batch, places)
    assert weight.all()
    torch.testing.assert_close(label[0], run.atlas.fine_label[0], atol=1e-5, rtol=0)
    assert torch.equal(label[1], own)
    guesses = torch.rand(2, 3, *SIZE).softmax(1)
    right = torch.stack([guesses[0], own])
    assert agreement(run.atlas, batch, places, guesses) == agreement(run.atlas, drawn, places, right)


def test_where_nobody_labelled_a_scan_the_guess_counts(ignoring):
    drawn = ignoring.batches.draw("a", 0, 1, augment=False, patches=False)
    own = torch.zeros(4, *SIZE)
    own[3] = 1.0
    batch = dataclasses.replace(drawn, truth=(own,))
    places = identity_grid(SIZE, torch.zeros(()))
    guess = torch.rand(1, 3, *SIZE).softmax(1)
    assert agreement(ignoring.atlas, batch, places, guess) == agreement(ignoring.atlas, drawn, places, guess)
    _, weight = pseudo_label(ignoring.atlas, batch, places)
    assert not weight.any()


def test_beyond_a_scans_field_of_view_nothing_counts(run, ignoring):
    places, beyond = identity_grid(SIZE, torch.zeros(())), (..., slice(10, None))
    guess, other = torch.rand(1, 3, *SIZE).softmax(1), torch.rand(1, 3, *SIZE).softmax(1)
    for made in (run, ignoring):
        batch = made.batches.draw("a", 0, 1, augment=False, patches=False)
        _, known = pseudo_label(made.atlas, batch, places)
        assert known.any()
        inside = torch.ones(1, 1, *SIZE)
        inside[beyond] = 0.0
        cut = dataclasses.replace(batch, seen=inside)
        _, weight = pseudo_label(made.atlas, cut, places)
        assert torch.equal(weight, inside * known)
        changed = guess.clone()
        changed[beyond] = other[beyond]
        assert agreement(made.atlas, cut, places, changed) == agreement(made.atlas, cut, places, guess)
        assert agreement(made.atlas, batch, places, changed) != agreement(made.atlas, batch, places, guess)


def test_empty_borders_that_were_cut_off_lie_in_the_field_of_view(run):
    case, whole = next(iter(run.batches.cases)), run.batches._scans
    scan = whole[case]
    cut = dataclasses.replace(
        scan,
        image=scan.image[..., 4:],
        geometry=scan.geometry.box((0, 0, 4), scan.geometry.shape),
        uncut=scan.geometry,
    )
    run.batches._scans = {**{name: whole[name] for name in run.batches.cases}, case: cut}
    inside = run.batches.plain(case).patch.inside
    assert not inside[..., :4].any()
    assert inside[..., 4:].all()
    whole_grid = identity_grid(SIZE, torch.zeros(()))
    assert run.batches._seen(case, whole_grid).all()
    run.batches._scans = {name: dataclasses.replace(cut, uncut=None) for name in run.batches.cases}
    assert torch.equal(run.batches._seen(case, whole_grid), inside)


def test_the_weight_of_a_pseudo_label_carries_no_gradient():
    logits = torch.randn(1, 2, 2, 2, 2, requires_grad=True)
    label = torch.rand(1, 2, 2, 2, 2, requires_grad=True)
    weight = torch.rand(1, 1, 2, 2, 2, requires_grad=True)
    dice_and_cross_entropy(logits, label, weight)[0].backward()
    assert label.grad is None
    assert weight.grad is None
    assert logits.grad is not None


def test_the_atlas_is_mirrored_with_the_scans(run, settings):
    """At rest, a mirrored pair has the very loss of the pair itself."""
    nn.init.zeros_(run.nets.registration_decoder.head.weight)
    batch = run.batches.draw("a", 0, 1, augment=False, patches=False)
    view = batch.whole
    flipped = View(image=view.image.flip(-1), clean=view.clean.flip(-1), inside=view.inside.flip(-1), start=view.start)
    seen = batch.seen.flip(-1)
    mirrored = Batch(cases=batch.cases, whole=flipped, patch=flipped, seen=seen, compared=flipped, mirrored=(2,))
    stage = JointRegSeg(settings)
    plain = stage.loss(run.nets, run.atlas, batch).numbers()["similarity"]
    assert stage.loss(run.nets, run.atlas.mirrored((2,)), mirrored).numbers()["similarity"] == pytest.approx(plain)
    assert stage.loss(run.nets, run.atlas, mirrored).numbers()["similarity"] != pytest.approx(plain, abs=1e-3)


@pytest.mark.parametrize("kind", ["mse", "cosine", "l1"])
def test_the_plan_chooses_the_distance_to_the_teacher(make_run, kind):
    run = make_run(distillation_loss=kind)
    give_features(run)
    stage = get_trainer("default").stages(run.plan, distil=True)[0]
    batch = run.batches.draw(stage.name, 0, 1, augment=False, patches=False)
    assert batch.features is not None
    student = run.nets.feature_projection(run.nets.general_encoder(batch.whole.image)[-1])
    teacher = batch.features
    expected = {
        "mse": (student - teacher).square().mean(),
        "l1": (student - teacher).abs().mean(),
        "cosine": (1 - (student * teacher).sum(1) / (student.norm(dim=1) * teacher.norm(dim=1))).mean(),
    }
    torch.testing.assert_close(stage.loss(run.nets, run.atlas, batch).terms["distillation"], expected[kind])


def test_a_distance_that_nobody_knows_is_refused(make_plan, tmp_path, edit_json):
    save_json(make_plan(), tmp_path / "plan.json")
    edit_json(tmp_path / "plan.json", distillation_loss="huber")
    with pytest.raises(BadInputError, match=r"plan\.json: distillation_loss: Input should be 'mse', 'cosine' or 'l1'"):
        load_json(Plan, tmp_path / "plan.json")
