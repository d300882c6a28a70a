"""Sliding windows, the way back to a scan's own grid, and scans that lie differently in the world."""

import dataclasses
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.spatial.transform import Rotation

from rrlsam.data.atlas import make_atlas
from rrlsam.data.sampling import affine_points
from rrlsam.engine.device import Device
from rrlsam.errors import BadInputError
from rrlsam.evaluation.metrics import dice
from rrlsam.geometry import Geometry, Reflection, geometry_of, make_geometry, matrix_rows
from rrlsam.labels import LabelScheme, Structure
from rrlsam.models.checkpoint import Checkpoint, Progress, Provenance
from rrlsam.nets.build import build_networks
from rrlsam.nets.displacement import sample
from rrlsam.plan import GridPlan
from rrlsam.prediction import inference
from rrlsam.prediction.inference import Kind, Model, OnGrid, gaussian_importance, to_native
from rrlsam.prediction.segment import segment_image
from rrlsam.preprocessing.affine import alignment_image, unmoved
from rrlsam.preprocessing.preprocess import load_case, preprocess_case
from rrlsam.scans.channel_stats import ChannelStats
from rrlsam.scans.volume import read_channels, read_labels, to_canonical

SHAPE = (6, 7, 8)
CPU = Device("cpu", torch.float32, "for tests")
STATS = ChannelStats(
    mean=50.0, std=20.0, minimum=0.0, percentile_00_5=0.0, median=50.0, percentile_99_5=200.0, maximum=250.0
)


def on_grid(label: np.ndarray, n_classes: int = 3, **fields) -> OnGrid:
    """A result that is wholly sure of a label, on a grid at the world's origin."""
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(label).long(), n_classes).movedim(-1, 0).float()
    result = OnGrid(
        grid=make_geometry(label.shape, np.eye(4)),
        atlas_to_case=np.eye(4),
        probabilities=one_hot,
        displacement=torch.zeros(1, 3, *label.shape),
        image_displacement=torch.zeros(1, 3, *label.shape),
        atlas_label=one_hot[None],
        alignment="affine",
    )
    return dataclasses.replace(result, **fields)


def random_label(high: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, SHAPE)


def restored(results: list[OnGrid], native: Geometry, kind: Kind = "segmentation") -> torch.Tensor:
    return torch.cat([part for _, part in to_native(results, native, kind)], dim=1)


def test_importance_is_positive_and_largest_in_the_middle():
    weight = gaussian_importance((9, 17, 33))[0, 0]
    assert (weight > 0).all()
    assert float(weight[4, 8, 16]) == 1.0
    assert torch.equal(weight, weight.flip((0, 1, 2)))


@pytest.mark.parametrize("kind", ["segmentation", "registration", "image_registration"])
def test_on_its_own_grid_a_result_comes_back_as_it_is(kind):
    label = random_label()
    result = on_grid(label)
    back = restored([result], result.grid, kind)
    torch.testing.assert_close(back, result.probabilities, atol=1e-5, rtol=0)


def test_probabilities_sum_to_one_even_outside_the_grid():
    result = on_grid(random_label())
    native = result.grid.box((-3, -3, -3), (9, 10, 11))
    back = restored([result], native)
    torch.testing.assert_close(back.sum(0), torch.ones(native.shape), atol=1e-5, rtol=0)
    assert (back[0, :2] == 1).all()


def test_slabs_give_what_the_whole_would_give(monkeypatch):
    result = on_grid(random_label())
    native = result.grid.with_spacing((0.7, 0.9, 1.3))
    whole = restored([result], native)
    monkeypatch.setattr(inference, "SLAB_VOXELS", 2 * native.shape[1] * native.shape[2])
    slabs = list(to_native([result], native, "segmentation"))
    assert len(slabs) > 2
    torch.testing.assert_close(torch.cat([part for _, part in slabs], dim=1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["segmentation", "registration"])
def test_only_voxels_that_the_grid_does_not_reach_are_left_out(kind):
    """A turned scan about the grid, with a field that pulls from 4 voxels away; by the definition, for every voxel."""
    turn = np.eye(4)
    turn[:3, :3] = 1.3 * Rotation.from_euler("xyz", [20.0, -30.0, 40.0], degrees=True).as_matrix()
    turn[:3, 3] = np.array([3.5, 3.0, 2.5]) - turn[:3, :3] @ [10.5, 9.5, 11.5]  # centre onto centre
    displacement = torch.zeros(1, 3, *SHAPE)
    displacement[:, 1] = 4.0
    result, native = on_grid(random_label(), displacement=displacement), make_geometry((24, 20, 22), turn)
    points = affine_points(native.shape, turn)
    if kind == "registration":
        points = points + sample(displacement, points)
    inside = sample(result.atlas_label, points, padding="zeros")[0]
    expected = torch.cat([1.0 - inside[1:].sum(0, keepdim=True), inside[1:]])
    assert 0.005 < float((expected[0] < 0.5).float().mean()) < 0.5
    torch.testing.assert_close(restored([result], native, kind), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shift", [1000.0, -1000.0])
def test_a_scan_that_the_grid_does_not_reach_at_all_is_background(shift):
    away = np.eye(4)
    away[:3, 3] = shift
    assert (restored([on_grid(random_label())], make_geometry(SHAPE, away))[0] == 1).all()


def test_several_models_are_averaged():
    first, second = on_grid(np.zeros(SHAPE, int)), on_grid(np.ones(SHAPE, int))
    back = restored([first, first, second], first.grid)
    torch.testing.assert_close(back[1], torch.full(SHAPE, 1 / 3), atol=1e-5, rtol=0)


def test_the_affine_carries_the_atlas_grid_onto_the_scan():
    shift = np.eye(4)
    shift[:3, 3] = [10.0, 20.0, 30.0]
    label = random_label()
    native = make_geometry(SHAPE, shift)
    back = restored([on_grid(label, atlas_to_case=shift)], native)
    assert np.array_equal(back.argmax(0).numpy(), label)


def test_the_displacement_pulls_the_atlas_label():
    label = random_label()
    displacement = torch.zeros(1, 3, *SHAPE)
    displacement[:, 0] = 2
    back = restored([on_grid(label, displacement=displacement)], make_geometry(SHAPE, np.eye(4)), "registration")
    assert np.array_equal(back.argmax(0).numpy()[..., :-2], label[..., 2:])


def test_regions_are_painted_in_their_order():
    scheme = LabelScheme(
        n_classes=3,
        structures=(Structure(name="whole", values=(1, 2)), Structure(name="core", values=(2,))),
        regions_class_order=(1, 2),
        ignore=None,
    )
    probabilities = np.array([[0.4, 0.3, 0.1, 0.6], [0.3, 0.5, 0.1, 0.2], [0.3, 0.2, 0.8, 0.2]])[:, None, None]
    assert scheme.to_mask(probabilities).ravel().tolist() == [1, 1, 2, 0]
    np.testing.assert_allclose(scheme.exported(probabilities)[:, 0, 0, 0], [0.6, 0.3])


@pytest.fixture(scope="module")
def phantom_image(phantoms, tmp_path_factory) -> sitk.Image:
    folder = phantoms.make_dataset(tmp_path_factory.mktemp("raw") / "Dataset001_Tiny", 2, 0, spacing=(1.2, 1.0, 1.1))
    return read_channels((folder / "imagesTr" / "lab_01_0000.nii.gz",))


@pytest.fixture(scope="module")
def atlas_image(phantoms, tmp_path_factory) -> sitk.Image:
    folder = phantoms.make_dataset(tmp_path_factory.mktemp("raw") / "Dataset001_Tiny", 1, 0, spacing=(1.2, 1.0, 1.1))
    return read_channels((folder / "imagesTr" / "lab_00_0000.nii.gz",))


@pytest.fixture(scope="module")
def model(phantoms, make_plan, make_provenance, tmp_path_factory) -> Model:
    """Random networks that register nothing beyond the affine alignment; the atlas is the un-warped phantom."""
    return random_model(make_plan, phantoms, make_provenance(("lab_00",), "0"), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def predicted(model, phantom_image) -> OnGrid:
    """What the model says of the phantom."""
    return model.predict(phantom_image)


def random_model(make_plan, phantoms, provenance: Provenance, folder: Path, *, ignore: bool = False) -> Model:
    from rrlsam.plan import AugmentationPlan, DataPlan
    from rrlsam.scans.dataset import load_dataset

    raw = phantoms.make_dataset(folder / "Dataset001_Tiny", 2, 0, spacing=(1.2, 1.0, 1.1), ignore=ignore)
    dataset = load_dataset(raw)
    scan, size = dataset.scan("lab_00"), (20, 24, 24)
    plan = make_plan(
        dataset=dataset.name,
        channel_names=dataset.channel_names,
        labels=dataset.labels,
        atlases=("lab_00",),
        data=DataPlan(spacing_mm=(1.1, 1.0, 1.2), normalization=("zscore",), normalize_inside_nonzero=(False,)),
        grid=GridPlan(start_vox=(0, 0, -1), size_vox=size, registration_size_vox=size, patch_vox=size),
        augmentation=AugmentationPlan(rotation_degrees=10.0, scale=0.1, mirror_axes=()),
    )
    preprocess_case(scan, plan.data, folder / "cases")
    stored = load_case(folder / "cases", scan.case)
    assert scan.label is not None
    picture = alignment_image(stored.array, stored.geometry)
    atlas = make_atlas(stored, to_canonical(read_labels(scan.label)), plan, (STATS,), picture)
    return Model(
        Checkpoint(
            plan=plan,
            provenance=provenance,
            atlases=(atlas,),
            networks=build_networks(plan, seed=1).state_dict(),
            progress=Progress(finished=(), stage="", iteration=0, optimizer=None, journal_size=0),
        ),
        CPU,
    )


def test_where_nobody_labelled_the_atlas_its_segmentation_is_warped(
    make_plan, make_provenance, phantoms, tmp_path, phantom_image, predicted
):
    partly = random_model(make_plan, phantoms, make_provenance(("lab_00",), "0"), tmp_path, ignore=True)
    ignored = partly.atlas.label == partly.plan.labels.ignore
    label = partly.predict(phantom_image).atlas_label
    assert ignored.any()
    assert label.shape == predicted.atlas_label.shape
    assert (label.amax(1) == 1).all()
    assert (label.sum(1) == 1).all()
    assert torch.equal(label.argmax(1)[~ignored], partly.atlas.label[~ignored].long())


def mask_of(on_grid: OnGrid, image: sitk.Image, kind: Kind = "registration") -> sitk.Image:
    """The registration's mask in the scan's own grid."""
    probabilities = restored([on_grid], geometry_of(image), kind)
    mask = sitk.GetImageFromArray(probabilities.argmax(0).numpy().astype(np.uint8))
    mask.SetSpacing(image.GetSpacing())
    mask.SetOrigin(image.GetOrigin())
    mask.SetDirection(image.GetDirection())
    return mask


def least_dice(first: sitk.Image, second: sitk.Image) -> float:
    a, b = sitk.GetArrayFromImage(first), sitk.GetArrayFromImage(second)
    return min(dice(a == value, b == value) for value in (1, 2))


ORDERS = ["".join(letters) for axes in permutations(("LR", "PA", "SI")) for letters in product(*axes)]


@pytest.mark.parametrize(
    "order", [pytest.param(order, marks=[pytest.mark.slow] if i % 5 else []) for i, order in enumerate(ORDERS)]
)
def test_the_order_of_axes_in_a_file_does_not_matter(model, phantom_image, predicted, order):
    scan = sitk.DICOMOrient(phantom_image, order)
    turned = mask_of(model.predict(scan), scan)
    assert turned.GetDirection() == scan.GetDirection()
    assert least_dice(mask_of(predicted, phantom_image), sitk.DICOMOrient(turned, "LPS")) > 0.98


def test_there_are_48_orders_of_axes():
    assert len(set(ORDERS)) == 48


@pytest.fixture(scope="module")
def atlas_predicted(model, atlas_image) -> OnGrid:
    return model.predict(atlas_image)


def test_a_scan_in_memory_is_segmented_on_its_own_grid(model, phantom_image):
    scalar = sitk.VectorIndexSelectionCast(phantom_image, 0)
    masks = [segment_image(image, [model], average=False) for image in (phantom_image, scalar)]
    for mask in masks:
        assert (mask.GetSize(), mask.GetOrigin()) == (phantom_image.GetSize(), phantom_image.GetOrigin())
        assert mask.GetPixelID() == sitk.sitkUInt8
    assert sitk.Hash(masks[0]) == sitk.Hash(masks[1])
    assert set(np.unique(sitk.GetArrayFromImage(masks[0]))) > {0}


@pytest.mark.parametrize(
    ("spoilt", "told"),
    [
        (lambda image: sitk.Compose([image, image]), "2 channel"),
        (lambda image: image[:, :, 3], "not 3-D"),
        (lambda image: sitk.Sqrt(image * 0 - 1), "NaN or infinite"),
        (lambda image: sitk.RealAndImaginaryToComplex(image, image), "must be real numbers"),
    ],
)
def test_what_is_no_scan_of_the_models_kind_is_refused_in_memory(model, phantom_image, spoilt, told):
    with pytest.raises(BadInputError, match=told):
        segment_image(spoilt(sitk.VectorIndexSelectionCast(phantom_image, 0)), [model])


@pytest.mark.parametrize("angles", [(12, 0, 0), (0, -15, 10)])
def test_a_scan_that_lies_obliquely_gives_the_same_mask(model, atlas_image, atlas_predicted, angles):
    """The atlas itself, so that one alignment is best; networks that learnt nothing pull at the label a little."""
    oblique = sitk.Image(atlas_image)
    oblique.SetDirection(Rotation.from_euler("xyz", angles, degrees=True).as_matrix().ravel().tolist())
    oblique.SetOrigin((30.0, -50.0, 70.0))
    turned = model.predict(oblique)
    kinds: tuple[tuple[Kind, float], ...] = (("image_registration", 0.98), ("registration", 0.96))
    for kind, least in kinds:
        expected = mask_of(atlas_predicted, atlas_image, kind)
        assert least_dice(expected, mask_of(turned, oblique, kind)) > least, kind


def test_the_mask_lies_on_the_phantom(predicted, phantom_image, phantoms):
    mask = sitk.GetArrayFromImage(mask_of(predicted, phantom_image))
    truth = phantoms.phantom(1)[1]
    assert dice(mask > 0, truth > 0) > 0.85


def test_the_segmentation_does_not_depend_on_the_order_of_axes_either(model, phantom_image, predicted):
    expected = predicted.probabilities
    turned = model.predict(sitk.DICOMOrient(phantom_image, "ARI")).probabilities
    torch.testing.assert_close(turned, expected, atol=0.02, rtol=0)


def test_turned_views_are_averaged_unless_told_not_to(model, phantom_image, predicted):
    still = model.predict(phantom_image, average=False).probabilities
    averaged = predicted.probabilities
    assert not torch.allclose(averaged, still, atol=1e-3)
    torch.testing.assert_close(averaged, still, atol=0.5, rtol=0)
    torch.testing.assert_close(averaged.sum(0), torch.ones_like(averaged[0]), atol=1e-4, rtol=0)


def test_mirrored_views_are_averaged_too_if_the_plan_mirrors(model, phantom_image, predicted, monkeypatch):
    still = predicted.probabilities
    augmentation = dataclasses.replace(model.plan.augmentation, mirror_axes=(0, 2))
    monkeypatch.setattr(model, "plan", dataclasses.replace(model.plan, augmentation=augmentation))
    averaged = model.predict(phantom_image).probabilities
    assert not torch.allclose(averaged, still, atol=1e-3)
    torch.testing.assert_close(averaged.sum(0), torch.ones_like(averaged[0]), atol=1e-4, rtol=0)


def test_a_scan_is_segmented_from_both_sides_if_the_plan_reflects(model, phantom_image, monkeypatch):
    """What is seen of the mirror image is what is seen of the scan, in the mirror and with sides swapped."""
    across = np.diag([-1.0, 1.0, 1.0, 1.0])
    across[0, 3] = 21 * 1.2
    reflected = dataclasses.replace(model.plan, reflection=Reflection(matrix=matrix_rows(across), swapped=(0, 2, 1)))
    monkeypatch.setattr(inference, "align_closely", lambda target, *_: unmoved(target.whole))
    other_side = sitk.Flip(phantom_image, (True, False, False))
    other_side.CopyInformation(phantom_image)

    def seen(image: sitk.Image, average: bool = True) -> torch.Tensor:
        return model.predict(image, average=average, refinement_iterations=1, joint=False).probabilities

    one_sided, still = seen(phantom_image), seen(phantom_image, average=False)
    monkeypatch.setattr(model, "plan", reflected)
    assert torch.equal(seen(phantom_image, average=False), still)
    here, there = seen(phantom_image), seen(other_side)
    torch.testing.assert_close(there, here.flip(-1)[[0, 2, 1]], atol=1e-3, rtol=0)
    assert not torch.allclose(here, one_sided, atol=1e-2)


def test_prediction_refines_as_planned_unless_told_otherwise(model, phantom_image, monkeypatch):
    asked, real = [], inference.refined_flow
    monkeypatch.setattr(inference, "refined_flow", lambda *a, **k: asked.append(a[3]) or real(*a, **k))
    model.predict(phantom_image, average=False)
    model.predict(phantom_image, average=False, refinement_iterations=2)
    assert asked == [model.plan.prediction_refinement_iterations, 2]


def test_the_segmentation_changes_only_the_registration_and_only_if_asked(model, phantom_image):
    alone, helped = (model.predict(phantom_image, average=False, joint=joint) for joint in (False, True))
    assert torch.equal(alone.displacement, alone.image_displacement)
    assert torch.equal(alone.image_displacement, helped.image_displacement)
    assert torch.equal(alone.probabilities, helped.probabilities)
    assert not torch.equal(helped.displacement, helped.image_displacement)


def test_a_registration_that_the_segmentation_helps_is_that_of_a_prediction_in_one_view(model, phantom_image):
    predicted = model.predict(phantom_image, average=False, refinement_iterations=4)
    registered = model.register(phantom_image, refinement_iterations=4, segment=True)
    field = inference.unfold_on(model.atlas.grid.shape, registered.flow)[1]
    torch.testing.assert_close(field, predicted.displacement)
    assert not torch.allclose(field, predicted.image_displacement, atol=1e-3)


def test_a_model_brought_to_the_processor_predicts_the_same(model, phantom_image):
    here, there = (m.predict(phantom_image, average=False) for m in (model, model.on_processor()))
    torch.testing.assert_close(here.probabilities, there.probabilities, rtol=0, atol=0.05)
    assert model.on_processor()._nets is not model._nets


def test_a_model_is_brought_to_the_processor_once(model):
    assert model.on_processor() is model.on_processor()
