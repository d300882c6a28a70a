"""Scans on the atlas grid, and the batches made of them."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from rrlsam.data import sampling
from rrlsam.data.augment import change_intensities, draw_affine, mirror_matrix, views_to_average
from rrlsam.data.batches import LABELLED_DRAWS, Batches
from rrlsam.data.sampling import ScanCache, TrainingScan, grid_to_scan, inside_mask, sample_affine, shares_at
from rrlsam.geometry import make_geometry
from rrlsam.nets.displacement import sample
from rrlsam.plan import AugmentationPlan, GridPlan
from rrlsam.system.resources import Memory

SIZE = (16, 16, 16)
WHOLE = GridPlan(start_vox=(0, 0, 0), size_vox=SIZE, registration_size_vox=SIZE, patch_vox=SIZE)
PATCHES = GridPlan(start_vox=(0, 0, 0), size_vox=SIZE, registration_size_vox=(8, 8, 8), patch_vox=(8, 10, 12))
TURNING = AugmentationPlan(rotation_degrees=10.0, scale=0.1, mirror_axes=(2,))
THRESHOLD = 0.5
"""Of the phantoms' intensities, between their shell and what is around it."""
MIRRORING = AugmentationPlan(rotation_degrees=0.0, scale=0.0, mirror_axes=(2,))


@pytest.fixture
def make_batches(training_scans):
    def make(
        grid: GridPlan = WHOLE, augmentation: AugmentationPlan = TURNING, seed: int = 0, labelled: tuple[str, ...] = ()
    ) -> Batches:
        scans = training_scans()
        for case in labelled:
            label = (scans[case].image[0] > THRESHOLD).to(torch.int16)
            scans[case] = dataclasses.replace(scans[case], label=label)
        return Batches(
            tuple(scans),
            ScanCache(scans.__getitem__),
            make_geometry(SIZE, np.eye(4)),
            grid,
            augmentation,
            seed=seed,
            labelled=labelled,
            n_labels=2 if labelled else 0,
        )

    return make


def test_resampling_agrees_with_scipy_inside():
    image = np.random.default_rng(0).normal(size=(14, 15, 16)).astype(np.float32)
    matrix = np.eye(4)
    matrix[:3, :3] = [[0.9, 0.1, 0.0], [-0.1, 0.9, 0.05], [0.0, -0.05, 0.8]]
    matrix[:3, 3] = [2.0, 1.5, 2.5]
    flip, offset = matrix[:3, :3][::-1, ::-1], matrix[:3, 3][::-1].tolist()
    expected = ndimage.affine_transform(image, flip, offset=offset, output_shape=(10, 11, 12), order=1)
    found = sample_affine(torch.from_numpy(image)[None], matrix, (10, 11, 12))[0].numpy()
    inside = inside_mask(image.shape, matrix, (10, 11, 12))[0].numpy() > 0
    inside = np.asarray(ndimage.binary_erosion(inside, iterations=2, border_value=1))
    assert inside.mean() > 0.5
    assert np.where(inside, np.abs(np.subtract(found, expected)), 0).max() < 1e-4


def test_the_identity_gives_the_image_back():
    image = torch.rand(2, 5, 6, 7)
    torch.testing.assert_close(sample_affine(image, np.eye(4), (5, 6, 7)), image, atol=1e-5, rtol=0)


def test_outside_is_the_border_or_zero_as_asked_for():
    image, matrix = torch.full((1, 4, 4, 4), 3.0), np.eye(4)
    matrix[0, 3] = 100
    assert (sample_affine(image, matrix, (4, 4, 4)) == 3).all()
    assert (sample_affine(image, matrix, (4, 4, 4), padding="zeros") == 0).all()


def test_a_labels_shares_are_those_of_its_one_hot_channels():
    """Inside, on the border and beyond, where all is background."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 4, (5, 6, 7), generator=generator, dtype=torch.int16)
    points = 11 * torch.rand((1, 3, 4, 9, 8), generator=generator) - 2
    one_hot = torch.nn.functional.one_hot(label.long()).movedim(-1, 0).float()
    expected = sample(one_hot[None], points, padding="zeros")[0]
    expected[0] += 1 - expected.sum(0)
    torch.testing.assert_close(shares_at(label, points, 4), expected, atol=1e-5, rtol=0)


def test_the_field_of_view_ends_half_a_voxel_beyond_the_last_centre():
    matrix = np.diag([0.25, 1.0, 1.0, 1.0])
    matrix[0, 3] = -1.0
    inside = inside_mask((3, 3, 3), matrix, (3, 3, 24))[0, 1, 1]
    positions = -1.0 + 0.25 * np.arange(24)
    assert inside.tolist() == [float(-0.5 <= p <= 2.5) for p in positions]


def test_a_grid_is_carried_into_the_scan_through_the_world():
    shifted = np.eye(4)
    shifted[:3, 3] = [1.0, 2.0, 3.0]
    scan = TrainingScan(
        image=torch.zeros(1, 4, 4, 4),
        geometry=make_geometry((4, 4, 4), np.diag([0.5, 0.5, 0.5, 1.0])),
        atlas_to_case=shifted,
    )
    matrix = grid_to_scan(make_geometry((4, 4, 4), np.eye(4)), scan)
    np.testing.assert_allclose(matrix @ [1, 0, 0, 1], [4, 4, 6, 1])


def test_batches_are_the_same_every_time(make_batches):
    first, second = (make_batches().draw("a", 3, 2, augment=True, patches=False) for _ in range(2))
    assert first.cases == second.cases
    assert first.mirrored == second.mirrored
    assert torch.equal(first.whole.image, second.whole.image)


@pytest.mark.parametrize("other", [("a", 4, 0), ("b", 3, 0), ("a", 3, 1)], ids=["iteration", "stage", "seed"])
def test_batches_differ_by_stage_iteration_and_seed(make_batches, other):
    stage, iteration, seed = other
    first = make_batches().draw("a", 3, 4, augment=True, patches=False)
    second = make_batches(seed=seed).draw(stage, iteration, 4, augment=True, patches=False)
    assert not torch.equal(first.whole.clean, second.whole.clean)


def test_a_batch_does_not_depend_on_what_was_drawn_before(make_batches):
    used = make_batches()
    for iteration in range(3):
        used.draw("a", iteration, 1, augment=True, patches=False)
    fresh = make_batches().draw("a", 3, 1, augment=True, patches=False)
    assert torch.equal(used.draw("a", 3, 1, augment=True, patches=False).whole.image, fresh.whole.image)


def test_every_case_is_seen_once_an_epoch(make_batches):
    batches = make_batches()
    epochs = [
        [batches.draw("a", 2 * epoch + i, 2, augment=False, patches=False).cases for i in range(2)]
        for epoch in range(5)
    ]
    orders = [sum(epoch, ()) for epoch in epochs]
    assert all(sorted(order) == ["atlas", "b", "c", "d"] for order in orders)
    assert len(set(orders)) > 1


def test_scans_with_a_label_are_drawn_more_often_and_bring_it(make_batches):
    batches = make_batches(labelled=("b", "d"))
    drawn = [batches.draw("a", i, 1, augment=True, patches=False) for i in range(2 * LABELLED_DRAWS + 2)]
    assert all((batch.truth[0] is not None) == (batch.cases[0] in ("b", "d")) for batch in drawn)
    assert sorted(batch.cases[0] for batch in drawn) == sorted(["atlas", "c", *(LABELLED_DRAWS * ["b", "d"])])


def test_stages_that_look_at_no_labels_draw_all_scans_alike(make_batches):
    batches = make_batches(labelled=("b",))
    drawn = [batches.draw("a", i, 1, augment=False, patches=False, compare=False) for i in range(4)]
    assert sorted(batch.cases[0] for batch in drawn) == ["atlas", "b", "c", "d"]
    assert all(batch.truth == () for batch in drawn)


@pytest.mark.parametrize("grid", [WHOLE, PATCHES], ids=["whole", "patches"])
def test_a_scans_own_label_moves_with_it(make_batches, grid):
    """The label is the bright part of the image, so each tells where the other must lie."""
    batches = make_batches(grid, labelled=("b", "d"))
    drawn = (batches.draw("a", i, 1, augment=True, patches=True) for i in range(8))
    batch, truth = next((batch, batch.truth[0]) for batch in drawn if batch.truth[0] is not None)
    torch.testing.assert_close(truth.sum(0), torch.ones(truth.shape[1:]))
    bright = batch.patch.clean[0, 0] > THRESHOLD
    assert ((truth[1] > 0.5) == bright).float().mean() > 0.95
    assert 0.05 < bright.float().mean() < 0.95


def test_without_own_labels_there_is_no_truth(make_batches):
    assert make_batches().draw("a", 0, 1, augment=True, patches=False).truth == ()


def test_an_unchanged_batch_is_the_scan_on_the_grid(make_batches, training_scans):
    batch = make_batches().draw("a", 0, 1, augment=False, patches=False)
    expected = training_scans()[batch.cases[0]].image
    torch.testing.assert_close(batch.whole.image[0], expected, atol=1e-4, rtol=0)
    assert batch.whole.clean is batch.whole.image or torch.equal(batch.whole.clean, batch.whole.image)
    assert batch.mirrored == ()


def test_an_augmented_batch_moves_and_changes_the_scan(make_batches, training_scans):
    batch = make_batches().draw("a", 0, 4, augment=True, patches=False)
    still = torch.stack([training_scans()[case].image for case in batch.cases])
    assert not torch.allclose(batch.whole.clean, still, atol=1e-2)
    assert not torch.equal(batch.whole.clean, batch.whole.image)


def test_a_mirrored_batch_is_the_flipped_one(make_batches):
    batches = make_batches(augmentation=MIRRORING)
    drawn = [batches.draw("a", i, 1, augment=True, patches=False) for i in range(12)]
    assert {batch.mirrored for batch in drawn} == {(), (2,)}
    for batch in drawn:
        plain = batches.plain(batch.cases[0]).whole.clean
        expected = plain.flip(-1) if batch.mirrored else plain
        torch.testing.assert_close(batch.whole.clean, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("augment", [False, True])
def test_a_patch_is_a_part_of_the_whole_fine_view(make_batches, augment):
    fine = make_batches(WHOLE).draw("a", 5, 2, augment=augment, patches=True).whole
    batch = make_batches(PATCHES).draw("a", 5, 2, augment=augment, patches=True)
    box = tuple(slice(a, a + n) for a, n in zip(batch.patch.start, PATCHES.patch_vox, strict=True))
    torch.testing.assert_close(batch.patch.clean, fine.clean[(..., *box)], atol=1e-3, rtol=0)
    assert torch.equal(batch.patch.inside, fine.inside[(..., *box)])


def test_patches_wander_over_the_grid(make_batches):
    batches = make_batches(PATCHES)
    starts = np.array([batches.draw("a", i, 1, augment=False, patches=True).patch.start for i in range(40)])
    assert (starts.min(0) == 0).all()
    assert (starts.max(0) == np.subtract(PATCHES.size_vox, PATCHES.patch_vox)).all()


def test_the_coarse_view_has_the_registration_size(make_batches):
    batch = make_batches(PATCHES).draw("a", 0, 1, augment=False, patches=True)
    assert tuple(batch.whole.image.shape[2:]) == PATCHES.registration_size_vox
    assert tuple(batch.patch.image.shape[2:]) == PATCHES.patch_vox


def test_one_view_serves_both_where_the_grid_is_seen_whole(make_batches):
    batch = make_batches().draw("a", 0, 1, augment=True, patches=True)
    assert batch.patch is batch.whole


def test_features_come_with_unchanged_scans_only(make_batches):
    batches = make_batches()
    batches.features = {case: np.full((256, 1, 1, 1), i, np.float16) for i, case in enumerate(batches.cases)}
    plain = batches.draw("a", 0, 2, augment=False, patches=False)
    assert plain.features is not None
    assert plain.features[:, 0, 0, 0, 0].tolist() == [float(batches.cases.index(case)) for case in plain.cases]
    assert batches.draw("a", 0, 2, augment=True, patches=False).features is None


def test_changing_intensities_leaves_both_global_random_states_alone():
    before, python_before = np.random.get_state()[1].tolist(), random.getstate()  # pyright: ignore
    for seed in range(20):
        change_intensities(np.ones((1, 6, 6, 6), np.float32), np.random.default_rng(seed))
    assert np.random.get_state()[1].tolist() == before  # pyright: ignore
    assert random.getstate() == python_before


def test_changing_intensities_is_deterministic():
    image = np.random.default_rng(0).random((1, 8, 8, 8)).astype(np.float32)
    made = [[change_intensities(image, np.random.default_rng(seed)) for seed in range(20)] for _ in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(*made, strict=True))
    assert sum(not np.array_equal(a, image) for a in made[0]) >= 5


def test_changing_intensities_does_not_touch_its_input():
    image = np.random.default_rng(0).random((1, 8, 8, 8)).astype(np.float32)
    before = image.copy()
    for seed in range(20):
        change_intensities(image, np.random.default_rng(seed))
    assert np.array_equal(image, before)


def test_mirroring_twice_is_no_mirroring():
    matrix = mirror_matrix((0, 2), (5, 6, 7))
    np.testing.assert_allclose(matrix @ matrix, np.eye(4))
    np.testing.assert_allclose(matrix @ [0, 3, 0, 1], [6, 3, 4, 1])


def test_rotations_act_in_millimetres_about_the_centre():
    plan = dataclasses.replace(TURNING, scale=0.0)
    matrix = draw_affine(np.random.default_rng(0), plan, (5, 20, 20), (4.0, 1.0, 1.0))
    spacing = np.diag([1.0, 1.0, 4.0])
    rotation = spacing @ matrix[:3, :3] @ np.linalg.inv(spacing)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(matrix @ [9.5, 9.5, 2, 1], [9.5, 9.5, 2, 1])


def test_the_cache_keeps_the_latest_scans_within_its_limit(training_scans):
    scans, loaded = training_scans(), []

    def load(case: str) -> TrainingScan:
        loaded.append(case)
        return scans[case]

    cache = ScanCache(load, limit_bytes=2 * scans["b"].image.nbytes)
    for case in ("b", "c", "b", "d", "b", "c"):
        assert cache[case] is scans[case]
    assert loaded == ["b", "c", "d", "c"]


@pytest.mark.parametrize(("free", "loads"), [(100, 8), (400, 4)])
def test_the_cache_takes_a_quarter_of_the_free_memory(training_scans, monkeypatch, free, loads):
    scans, loaded = training_scans(), []
    size = scans["b"].image.nbytes
    monkeypatch.setattr(sampling, "CACHE_BYTES", 2 * size)
    monkeypatch.setattr(sampling, "usable_memory", lambda: Memory(total=10**9, free=free * size // 25))
    cache = ScanCache(lambda case: loaded.append(case) or scans[case])
    for case in 2 * ("atlas", "b", "c", "d"):
        assert cache[case] is scans[case]
    assert len(loaded) == loads


def test_the_cache_counts_labels_too(training_scans):
    scans = training_scans()
    label = torch.zeros(scans["b"].image.shape[1:], dtype=torch.int64)
    cache = ScanCache(lambda case: dataclasses.replace(scans[case], label=label.clone()), limit_bytes=2 * label.nbytes)
    first = cache["b"]
    assert cache["c"] is not None
    assert cache["b"] is not first


def test_the_cache_counts_voxels_once_that_a_scan_and_its_mirror_image_share(training_scans):
    scan = training_scans()["b"]
    cache = ScanCache(lambda case: dataclasses.replace(scan), limit_bytes=scan.image.nbytes)
    first, mirrored = cache["b"], cache["mirrored/b"]
    assert cache["b"] is first
    assert cache["mirrored/b"] is mirrored


def test_views_to_average_begin_with_the_scan_itself_and_turn_by_half_of_the_training():
    views = views_to_average(TURNING, (8, 10, 12), (1.0, 1.0, 1.0))
    assert len(views) == 10, "five turned views, each mirrored or not"
    np.testing.assert_allclose(views[0], np.eye(4), atol=1e-12)
    centre = np.array([5.5, 4.5, 3.5, 1.0])
    for view in views:
        np.testing.assert_allclose(view @ centre, centre, atol=1e-9)
    angles = Rotation.from_matrix(views[1][:3, :3]).as_euler("xyz", degrees=True)
    np.testing.assert_allclose(angles, [5.0, 5.0, 5.0], atol=1e-9)
