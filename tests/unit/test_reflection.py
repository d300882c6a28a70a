"""Bodies that are nearly their own mirror image: told from others, and looked at from both sides."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from rrlsam.data.batches import LABELLED_DRAWS, Batches, mirror_of
from rrlsam.data.sampling import ScanCache
from rrlsam.errors import BadInputError
from rrlsam.geometry import Reflection, make_geometry, matrix_rows
from rrlsam.plan import check_plan
from rrlsam.planning import reflection
from rrlsam.planning.reflection import find_reflection
from rrlsam.stages.pseudo_labels import pseudo_label

PAIRS = ((1, 2),)
ACROSS = Reflection(
    matrix=((-1.0, 0.0, 0.0, 15.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)), swapped=(0, 2, 1)
)
"""Of the miniature plan's grid of 16^3 voxels about its middle."""


def find(image, label, *, pairs=PAIRS, world=None, n_classes=4, n_values=4):
    world = np.diag([1.2, 1.0, 1.1, 1.0]) if world is None else world
    geometry = make_geometry(label.shape, world)
    return find_reflection(image, label, geometry, pairs, n_classes=n_classes, n_values=n_values), geometry


def test_a_symmetric_body_has_a_reflection_across_its_middle(phantoms):
    found, geometry = find(*phantoms.two_sided_phantom(0))
    assert found is not None
    assert found.swapped == (0, 2, 1, 3)
    last = geometry.shape[2] - 1
    here, there = np.array([3.0, 9.0, 12.0, 1.0]), np.array([last - 3.0, 9.0, 12.0, 1.0])
    np.testing.assert_allclose(found.on_voxels(geometry) @ here, there, atol=0.5)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_slightly_deformed_body_has_one_that_is_its_own_inverse(phantoms, seed):
    found, _ = find(*phantoms.two_sided_phantom(seed))
    assert found is not None
    np.testing.assert_allclose(found.world @ found.world, np.eye(4), atol=1e-8)
    assert np.linalg.det(found.world) == pytest.approx(-1.0)


def test_a_body_that_lies_askew_is_reflected_across_its_own_middle(phantoms):
    """By the angle of its axes in the world, and by a field of view that is not about its middle."""
    image, label = phantoms.two_sided_phantom(0)
    image, label = (np.pad(a, [(0, 0)] * (a.ndim - 1) + [(6, 0)]) for a in (image, label))
    world = np.eye(4)
    world[:3, :3] = Rotation.from_euler("z", 20, degrees=True).as_matrix()
    found, geometry = find(image, label, world=world)
    assert found is not None
    last = geometry.shape[2] - 1
    here, there = np.array([9.0, 9.0, 12.0, 1.0]), np.array([last + 6 - 9.0, 9.0, 12.0, 1.0])
    np.testing.assert_allclose(found.on_voxels(geometry) @ here, there, atol=0.7)


def test_one_label_for_both_sides_is_its_own_counterpart(phantoms):
    image, label = phantoms.two_sided_phantom(0)
    label[label == 2] = 1
    found, _ = find(image, label, pairs=())
    assert found is not None
    assert found.swapped == (0, 1, 2, 3)


def test_structures_of_one_part_and_without_pairs_tell_of_no_symmetry(phantoms):
    """A single round organ is much like its mirror image too."""
    image, label = phantoms.two_sided_phantom(0)
    assert find(image, np.where(label == 3, 1, 0).astype(np.uint8), pairs=())[0] is None
    assert find(image, label, pairs=())[0] is None


def test_two_parts_on_one_side_tell_of_no_symmetry(phantoms):
    image, label = phantoms.two_sided_phantom(0)
    label[:] = 0
    label[4:8, 6:16, 2:7] = label[12:16, 6:16, 2:7] = 1
    assert find(image, label, pairs=())[0] is None


def test_what_is_named_as_a_pair_but_lies_otherwise_is_not_reflected(phantoms):
    assert find(*phantoms.phantom(0), n_classes=3, n_values=3)[0] is None


def test_a_pair_in_a_body_that_is_not_symmetric_is_not_reflected(phantoms):
    """Two kidneys, and a liver on one side."""
    image, label = phantoms.two_sided_phantom(0)
    label[label == 3] = 0
    label[4:10, 14:22, 2:9] = 3
    assert find(image, label)[0] is None


def test_a_small_structure_on_one_side_is_not_reflected(phantoms, monkeypatch):
    """Beside a large one in the middle, which by itself would do."""
    image, label = phantoms.two_sided_phantom(0)
    label[2:7, 2:7, 2:7] = 4
    assert find(image, label, n_classes=5, n_values=5)[0] is None
    monkeypatch.setattr(reflection, "LEAST_ALONE", 0.0)
    assert find(image, label, n_classes=5, n_values=5)[0] is not None


def test_what_nobody_labelled_counts_neither_way(phantoms):
    image, label = phantoms.two_sided_phantom(0)
    label[:, :, :9] = 4  # nearly all of one side
    assert not (label == 1).sum() > 0.2 * (label == 2).sum()
    found, _ = find(image, label, n_values=5)
    assert found is not None
    assert found.swapped == (0, 2, 1, 3, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"swapped": (0, 2)}, "swapped"),
        ({"swapped": (0, 2, 0)}, "swapped"),
        ({"swapped": (0, 7, 1)}, "swapped"),
        ({"matrix": matrix_rows(np.eye(4))}, "must mirror"),
        ({"matrix": matrix_rows(np.diag([-2.0, 1.0, 1.0, 1.0]))}, "own inverse"),
        ({"matrix": (*ACROSS.matrix[:3], (0.0, 0.0, 1.0, 1.0))}, "last row"),
    ],
)
def test_a_reflection_that_is_none_is_refused(make_plan, changes, message):
    check_plan(make_plan(reflection=ACROSS), source="x")
    with pytest.raises(BadInputError, match=f"x: reflection.*{message}"):
        check_plan(make_plan(reflection=dataclasses.replace(ACROSS, **changes)), source="x")


@pytest.fixture
def batches(training_scans, make_plan) -> Batches:
    """Four scans on the grid of the plan, and their mirror images; one brings a label."""
    scans, plan = training_scans(), make_plan(reflection=ACROSS)
    grid = make_geometry(plan.grid.size_vox, np.eye(4))
    for case in tuple(scans):
        scans[mirror_of(case)] = dataclasses.replace(scans[case], atlas_to_case=ACROSS.world)
    label = torch.from_numpy(np.random.default_rng(0).integers(0, 3, plan.grid.size_vox).astype(np.int16))
    scans[mirror_of("atlas")] = dataclasses.replace(scans[mirror_of("atlas")], label=label)
    return Batches(
        ("atlas", "b", "c", "d"),
        ScanCache(scans.__getitem__),
        grid,
        plan.grid,
        plan.augmentation,
        seed=0,
        labelled=(mirror_of("atlas"),),
        n_labels=3,
        reflection=ACROSS.on_voxels(grid),
    )


def test_a_mirror_image_has_a_name_of_its_own_and_its_own_has_the_scans():
    assert mirror_of("a") != "a"
    assert mirror_of(mirror_of("a")) == "a"


def test_every_scan_is_registered_in_the_mirror_too(batches):
    assert batches.registered == (*batches.cases, *map(mirror_of, batches.cases))
    for case in batches.cases:
        there, here = (batches.plain(name).whole.clean for name in (mirror_of(case), case))
        torch.testing.assert_close(there, here.flip(-1), atol=1e-4, rtol=0)


def test_mirror_images_are_drawn_like_scans_where_scans_are_registered(batches):
    epoch = 2 * len(batches.cases) + LABELLED_DRAWS - 1
    drawn = sorted(batches.draw("s", i, 1, augment=True, patches=False).cases[0] for i in range(epoch))
    assert drawn == sorted([*batches.registered, *(LABELLED_DRAWS - 1) * [mirror_of("atlas")]])
    distilled = sorted(batches.draw("s", i, 1, augment=False, patches=False, compare=False).cases[0] for i in range(4))
    assert distilled == sorted(batches.cases)


def test_a_stage_may_look_at_fewer_scans_always_at_those_with_a_label(batches):
    """Both views of a scan go together, stages choose anew, and what is refined is what is drawn."""
    batches.scans_a_stage = 2
    chosen = set()
    for stage in map(str, range(12)):
        drawn = {batches.draw(stage, i, 1, augment=False, patches=False).cases[0] for i in range(11)}
        assert drawn == set(batches.registered_by(stage, 11))
        assert {"atlas", mirror_of("atlas")} < drawn
        assert len(drawn) == 4
        chosen |= drawn
    assert chosen == set(batches.registered)


def test_what_a_few_draws_need_is_named_with_its_mirror_image(batches):
    for draws in (1, 3, 5):
        drawn = {batches.draw("s", i, 1, augment=False, patches=False).cases[0] for i in range(draws)}
        assert set(batches.registered_by("s", draws)) == drawn | {mirror_of(case) for case in drawn}


def two_fields(batches: Batches) -> None:
    """Whole voxels, others for each scan and each mirror image."""
    size = (1, 3, 16, 16, 16)
    batches.fields = {case: torch.full(size, float(i % 3 - 1)) for i, case in enumerate(batches.registered)}


def test_a_pseudo_label_is_the_mean_of_both_views(batches, make_run, make_plan):
    run = make_run(reflection=ACROSS)
    two_fields(batches)
    assert batches.fields is not None
    inner = (..., slice(2, -2), slice(2, -2), slice(2, -2))
    for i in range(8):
        batch = batches.draw("s", i, 1, augment=False, patches=False)
        case = batch.cases[0]
        label, _ = pseudo_label(run.atlas, dataclasses.replace(batch, truth=()), batch.atlas_points)
        here, there = (int(batches.fields[name][0, 0, 0, 0, 0]) for name in (case, mirror_of(case)))
        moved = [run.atlas.fine_label.roll((-n,) * 3, dims=(2, 3, 4)) for n in (here, there)]
        expected = (moved[0] + moved[1].flip(-1)[:, [0, 2, 1]]) / 2
        torch.testing.assert_close(label[inner], expected[inner], atol=1e-4, rtol=0)


def test_a_pseudo_label_does_not_depend_on_the_side_from_which_it_is_made(batches, make_run):
    """That of the mirror image is the scan's, seen in the mirror."""
    run = make_run(reflection=ACROSS)
    two_fields(batches)
    seen = {}
    for i in range(40):
        batch = batches.draw("s", i, 1, augment=False, patches=False)
        seen[batch.cases[0]] = pseudo_label(run.atlas, dataclasses.replace(batch, truth=()), batch.atlas_points)[0]
    assert set(seen) == set(batches.registered)
    for case in batches.cases:
        torch.testing.assert_close(seen[case], seen[mirror_of(case)].flip(-1)[:, [0, 2, 1]], atol=1e-4, rtol=0)
