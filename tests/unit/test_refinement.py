"""Fields that are optimised for one scan, and the pseudo labels that they give."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rrlsam.data.augment import mirror_matrix
from rrlsam.data.batches import View
from rrlsam.engine.fields import forget_fields, refined_fields, write_field
from rrlsam.engine.fit import fit
from rrlsam.errors import BadInputError
from rrlsam.losses.similarity import SquaredDifference, mind
from rrlsam.nets.displacement import displacement_at, resize_field, sample, warp
from rrlsam.nets.flow import Flow, followed_by, steps_for
from rrlsam.nets.jacobian import fold_percent
from rrlsam.plan import GridPlan, Plan, StagePlan
from rrlsam.stages.mutual_learning import MutualLearning
from rrlsam.stages.pseudo_labels import label_at
from rrlsam.stages.refinement import refine, unfold_on

SHAPE = (32, 36, 40)
COARSE = GridPlan(start_vox=(0, 0, 0), size_vox=(16, 16, 16), registration_size_vox=(8, 8, 8), patch_vox=(8, 12, 10))


def _texture(seed: int) -> torch.Tensor:
    """Smooth random blobs of unit variance."""
    noise = torch.randn(1, 1, 8, 9, 10, generator=torch.Generator().manual_seed(seed))
    image = F.interpolate(noise, size=SHAPE, mode="trilinear", align_corners=False)
    return image / image.std()


def _view(image: torch.Tensor) -> View:
    return View(image=image, clean=image, inside=torch.ones_like(image[:, :1]), start=(0, 0, 0))


def _bump(amplitude: float) -> torch.Tensor:
    """A smooth velocity on the half grid, at rest at the border."""
    waves = [torch.sin(torch.linspace(0, torch.pi, n // 2)) for n in SHAPE]
    bump = waves[0][:, None, None] * waves[1][None, :, None] * waves[2][None, None, :]
    return amplitude * torch.tensor([1.0, -0.8, 0.6]).view(1, 3, 1, 1, 1) * bump


def test_a_known_deformation_is_found():
    """From rest to within a third of a voxel of the truth, without folds."""
    image, truth = _texture(0), Flow((_bump(1.5),)).displacement(SHAPE)
    scan = _view(warp(image, truth))
    found = refine(torch.zeros_like(_bump(0)), image, scan, 30).displacement(SHAPE)
    inner = (..., slice(4, -4), slice(4, -4), slice(4, -4))
    before, after = truth[inner].norm(dim=1).median(), (found - truth)[inner].norm(dim=1).median()
    assert before > 1.5
    assert after < 0.34
    assert fold_percent(found[0].numpy()) == 0


def test_a_good_start_is_kept():
    """Starting from the truth, the warped atlas stays as like the scan as it was."""
    image, truth = _texture(0), _bump(1.5)
    scan = _view(warp(image, Flow((truth,)).displacement(SHAPE)))
    refined = refine(truth, image, scan, 5).displacement(SHAPE)
    assert float((refined - Flow((truth,)).displacement(SHAPE)).abs().mean()) < 0.1


def test_identical_images_stay_where_they_are():
    found = refine(torch.zeros_like(_bump(0)), _texture(0), _view(_texture(0)), 30).displacement(SHAPE)
    assert float(found.abs().max()) < 0.25


def test_by_descriptors_a_deformation_is_found_between_modalities():
    """The scan shows dark what is bright in the atlas, and the other way round."""
    image, truth = _texture(0), Flow((_bump(1.5),)).displacement(SHAPE)
    scan = mind(-warp(image, truth).tanh())
    found = refine(torch.zeros_like(_bump(0)), mind(image), _view(scan), 30, SquaredDifference).displacement(SHAPE)
    inner = (..., slice(4, -4), slice(4, -4), slice(4, -4))
    assert (found - truth)[inner].norm(dim=1).median() < 0.5 * truth[inner].norm(dim=1).median()


def test_the_inverse_of_a_flow_undoes_it():
    fine = F.interpolate(_bump(-0.7), size=SHAPE, mode="trilinear")
    flow = Flow((_bump(1.5), fine))
    there, back = flow.displacement(SHAPE), flow.inverse().displacement(SHAPE)
    assert float(followed_by(there, back).abs().max()) < 0.1
    assert float(followed_by(back, there).abs().max()) < 0.1
    assert float(there.abs().max()) > 1


def test_fewer_squarings_are_taken_for_slow_velocities():
    assert [steps_for(_bump(a) * 1.0, 1.0) for a in (0.5, 1.5, 3.0, 30.0)] == [0, 1, 2, 5]


def test_no_steps_change_nothing():
    (velocity,) = refine(_bump(1.0), _texture(0), _view(_texture(1)), 0).velocities
    assert torch.equal(velocity, _bump(1.0))


def test_refinement_is_deterministic_and_leaves_its_input_alone():
    start = _bump(1.0)
    with torch.no_grad():
        once, again = (refine(start, _texture(0), _view(_texture(1)), 3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once.velocities, again.velocities, strict=True))
    assert torch.equal(start, _bump(1.0))
    assert not any(velocity.requires_grad for velocity in once.velocities)


@pytest.mark.parametrize("grid", [None, COARSE], ids=["whole", "patches"])
@pytest.mark.parametrize("mirror_axes", [(), (0, 2)])
def test_a_field_labels_the_scan_wherever_it_is_seen(make_run, make_plan, grid, mirror_axes):
    """However a scan is turned, mirrored and cut, its pseudo label is the upright one, seen from there."""
    augmentation = dataclasses.replace(make_plan().augmentation, mirror_axes=mirror_axes)
    run = make_run(augmentation=augmentation, **({} if grid is None else {"grid": grid}))
    generator = torch.Generator().manual_seed(0)
    field = F.interpolate(torch.randn(1, 3, 3, 3, 3, generator=generator), size=(8, 8, 8), mode="trilinear")
    run.batches.fields = dict.fromkeys(run.batches.cases, field)
    upright = warp(run.atlas.fine_label, resize_field(field, (16, 16, 16)))
    for iteration in range(6):
        draw = run.batches.draw("s", iteration, 1, augment=True, patches=True)
        assert draw.atlas_points is not None
        label, _ = label_at(run.atlas.mirrored(draw.mirrored), draw.atlas_points)
        assert label.shape[2:] == draw.patch.image.shape[2:]
        turned = run.batches._turned(run.batches._random("s", "scan", iteration))
        points = run.batches._points(turned @ mirror_matrix(draw.mirrored, (16, 16, 16)), run.batches._fine)
        z, y, x = draw.patch.start
        for voxel in [(3, 4, 5), (5, 5, 4), (6, 2, 7)]:
            source = points[..., voxel[0] + z, voxel[1] + y, voxel[2] + x].view(1, 3, 1, 1, 1)
            point = source + displacement_at(field, source, (16, 16, 16))
            expected = sample(run.atlas.fine_label, point).flatten()
            torch.testing.assert_close(label[(0, slice(None), *voxel)], expected, atol=1e-4, rtol=0)
    still = run.batches.draw("s", 0, 1, augment=False, patches=False)
    if grid is None:
        assert still.atlas_points is not None
        torch.testing.assert_close(label_at(run.atlas, still.atlas_points)[0], upright, atol=1e-4, rtol=0)


def all_drawn(plan: Plan) -> StagePlan:
    """Of a stage that draws each of four scans once."""
    return dataclasses.replace(plan.mutual, iterations=4)


def test_fields_are_made_once_and_read_back(make_run, make_plan):
    """What a killed run left is taken over bit by bit; a stage that is under way refuses to make them anew."""
    run, stage = make_run(), MutualLearning(all_drawn(make_plan()), refinement_iterations=2)
    first = refined_fields(stage, run)
    assert first is not None
    assert set(first) == set(run.batches.cases)
    gone = run.folder / "fields" / stage.name / "b.npy"
    kept = run.folder / "fields" / stage.name / "c.npy"
    gone.unlink()
    marked = np.load(kept) + 1
    write_field(torch.from_numpy(marked), kept)
    second = refined_fields(stage, run)
    assert second is not None
    assert torch.equal(second["b"], first["b"])
    assert torch.equal(second["c"], torch.from_numpy(marked))
    gone.unlink()
    run.progress = dataclasses.replace(run.progress, stage=stage.name, iteration=1)
    with pytest.raises(BadInputError, match=r"b\.npy: is gone"):
        refined_fields(stage, run)
    forget_fields(run.folder)
    assert not kept.parent.exists()


def test_a_field_that_changed_on_disk_is_made_anew_or_ends_the_training(make_run, make_plan):
    run, stage = make_run(), MutualLearning(all_drawn(make_plan()), refinement_iterations=2)
    refined_fields(stage, run)
    path = run.folder / "fields" / stage.name / "b.npy"
    whole = path.read_bytes()
    path.write_bytes(bytes([*whole[:200], whole[200] ^ 16, *whole[201:]]))
    refined_fields(stage, run)
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-100])
    run.progress = dataclasses.replace(run.progress, stage=stage.name, iteration=1)
    with pytest.raises(BadInputError, match=r"b\.npy: is gone or damaged"):
        refined_fields(stage, run)


def test_a_training_scan_of_another_modality_is_told_once(make_run, make_plan, caplog):
    run, stage = make_run(), MutualLearning(all_drawn(make_plan()), refinement_iterations=1)
    scan = run.batches._scans["b"]
    lowest = scan.image.min()
    inverted = torch.where(scan.image > lowest, 2.0 - scan.image, lowest)
    run.batches._scans._scans["b"] = dataclasses.replace(scan, image=inverted)
    refined_fields(stage, run)
    told = [record.message for record in caplog.records if "another modality" in record.message]
    assert [message.split(":")[0] for message in told] == ["b"]
    refined_fields(stage, run)
    assert len([record for record in caplog.records if "another modality" in record.message]) == 1


def test_only_scans_that_a_stage_draws_are_refined(make_run, make_plan):
    run, stage = make_run(), MutualLearning(make_plan().mutual, refinement_iterations=1)
    fields = refined_fields(stage, run)
    assert fields is not None
    drawn = {run.batches.draw(stage.name, i, 1, augment=True, patches=False).cases[0] for i in range(2)}
    assert set(fields) == drawn
    assert len(drawn) == 2


def test_a_stage_leaves_no_fields_behind(make_run, make_plan):
    run, stage = make_run(), MutualLearning(make_plan().mutual, refinement_iterations=1)
    fit(stage, run)
    assert not list((run.folder / "fields").iterdir())
    assert refined_fields(MutualLearning(make_plan().mutual), run) is None


def test_folds_are_smoothed_away_where_they_are():
    """A velocity that is rough in one place loses its folds, and stays as it was far from there."""
    velocity = _bump(1.0)
    velocity[..., 4:6, 5:7, 6:8] += 6 * torch.randn(1, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    before = Flow((velocity,)).displacement(SHAPE)
    assert fold_percent(before[0].numpy()) > 0
    after = unfold_on(SHAPE, Flow((velocity,)))[1]
    assert fold_percent(after[0].numpy()) == 0
    torch.testing.assert_close(after[..., -6:, -6:, -6:], before[..., -6:, -6:, -6:], atol=0.02, rtol=0)


def test_a_field_without_folds_is_left_alone():
    flow = Flow((_bump(1.0),))
    kept, displacement = unfold_on(SHAPE, flow)
    assert kept is flow
    assert torch.equal(displacement, flow.displacement(SHAPE))
