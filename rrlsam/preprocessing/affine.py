"""Affine alignment of two scans on coarse images: world of the fixed one to world of the moving one."""

from collections.abc import Callable, Iterator

import numpy as np
import SimpleITK as sitk

from rrlsam.geometry import Geometry, Matrix4, geometry_of, itk_affine, matrix_rows, to_sitk
from rrlsam.preprocessing.far_starts import correlation, far_starts
from rrlsam.preprocessing.resample import smooth_and_sample
from rrlsam.system.jsonio import record
from rrlsam.system.threads import one_itk_thread

MAX_VOXELS = 64
"""Longest axis of an alignment image."""

_MIN_LEVEL_VOXELS = 12
_BINS = 20
_STEP = 0.5
"""Longest step of the search, in voxels of a level."""
_ITERATIONS = 30
"""Bound a level."""
_FINEST_SAMPLED = 0.3
"""Share of voxels looked at on the finest level, in a regular pattern."""
_SEED = 1
_DETERMINANT = (0.4, 2.5)
_THINNEST_HU = -1024.0
"""Nothing in a body or around it is thinner in Hounsfield units; what is below was made up by the scanner."""
_LEAST_PADDING = 0.001
"""Share of voxels."""
_STRETCH = (0.5, 2.0)
_LEAST_SAMPLES = 6000
"""Of a part of an atlas, fewer voxels are all looked at."""
_NEAR_SHIFT = 0.6
"""Of a part's longest axis, halved: by how much a nearer look may move its corners."""
_NEAR_STRETCH = (0.75, 1.33)
"""How much a nearer look may stretch what the look before it found."""
_KEPT_OVERLAP = 0.9
"""Of what the scan showed of a part, so much has to be kept: mutual information is that of the overlap alone."""
_FAR_GAIN = 0.05
"""By so much of correlation a far start must do better, and in mutual information too: neither alone is sure where
other parts overlap."""


@record
class Alignment:
    """A pull-back: where a world point of the fixed scan lies in the moving scan."""

    matrix: Matrix4
    """Fixed world to moving world, LPS mm, homogeneous."""
    method: str
    """"affine", or "centre": only shifted, since nothing better was plausible."""
    score_before: float
    """Mutual information with the centres of the fields of view on each other; larger is better."""
    score_after: float
    """Mutual information as aligned by the whole scans; nearer looks come after that."""


def alignment_image(array: np.ndarray, geometry: Geometry) -> sitk.Image:
    """The first channel of (c, z, y, x), clipped to its 0.5 to 99.5 percentiles and made coarse enough to be quick."""
    channel = without_padding(array[0].astype(np.float32))
    low, high = np.percentile(channel, (0.5, 99.5))
    if low < high:
        channel = np.clip(channel, low, high)
    coarsest = max(geometry.extent_mm) / MAX_VOXELS
    spacing = [max(s, coarsest) for s in geometry.spacing_mm]
    return smooth_and_sample(to_sitk(channel, geometry), geometry.with_spacing(spacing), sitk.sitkLinear)


def without_padding(channel: np.ndarray) -> np.ndarray:
    """A CT scan whose one value outside the circle of reconstruction (-2000, -3024) is raised to the least true one.

    That circle belongs to the scanner and would be aligned instead of the body. Other scans come back unchanged.
    """
    lowest = channel.min()
    padding = channel == lowest
    if lowest >= _THINNEST_HU or padding.mean() < _LEAST_PADDING or padding.all():
        return channel
    return np.where(padding, channel[~padding].min(), channel)


def align(fixed: sitk.Image, moving: sitk.Image) -> Alignment:
    """Best plausible affine map between two alignment images; the same inputs give the same matrix."""
    with one_itk_thread():
        return _align(fixed, moving)


def _align(fixed: sitk.Image, moving: sitk.Image) -> Alignment:
    unit = max(geometry_of(fixed).extent_mm) / 2
    small_fixed, small_moving, to_unit, from_unit = _in_units(fixed, moving, unit)
    starts = [np.eye(4), *_other_starts(fixed, moving, unit)]
    scores = [_score(small_fixed, small_moving, start) for start in starts]
    best = int(np.argmax(scores))
    matrix, score, method = starts[best], scores[best], "centre"
    if np.isfinite(score):
        matrix, score, method = _improved(small_fixed, small_moving, matrix, score)
        likeness = _likeness(small_fixed, small_moving, matrix)
        for far in far_starts(small_fixed, small_moving, matrix[:3, 3]):
            other = _improved(small_fixed, small_moving, far, _score(small_fixed, small_moving, far))
            alike = _likeness(small_fixed, small_moving, other[0])
            if alike > likeness + _FAR_GAIN and other[1] > score:
                (matrix, score, method), likeness = other, alike
    world = from_unit @ matrix @ to_unit
    return Alignment(
        matrix=matrix_rows(world),
        method=method,
        score_before=scores[0] if np.isfinite(scores[0]) else 0.0,
        score_after=score if np.isfinite(score) else 0.0,
    )


def _improved(fixed: sitk.Image, moving: sitk.Image, start: np.ndarray, score: float) -> tuple[np.ndarray, float, str]:
    """What refining a start of that score leads to, its score and the method; the start if that is not plausible."""
    found = _refine(fixed, moving, start)
    after = -np.inf if found is None else _score(fixed, moving, found)
    if found is None or not np.isfinite(after) or not _plausible(found, fixed, moving):
        return start, score, "centre"
    if after <= score:  # nothing is better than the start: two scans that lie alike already
        return start, score, "affine"
    return found, after, "affine"


def improved_affine(fixed: sitk.Image, moving: sitk.Image, world: np.ndarray) -> np.ndarray:
    """A map (4, 4) of the fixed world to the moving one, better for what the fixed image shows.

    The map as it was where nothing that is found is a small change, plausible, and better in mutual information and in
    correlation: neither alone is sure.
    """
    small_fixed, small_moving, to_unit, from_unit = _in_units(fixed, moving, max(geometry_of(fixed).extent_mm) / 2)
    start = np.linalg.inv(from_unit) @ world @ np.linalg.inv(to_unit)
    affine = itk_affine(start)
    try:
        for shrink in _levels(small_fixed, small_moving):
            _optimise(small_fixed, small_moving, affine, shrink, least_samples=_LEAST_SAMPLES)
    except RuntimeError:
        return world
    found = _matrix_of(affine)
    if not _plausible(found, small_fixed, small_moving) or not _near(found, start, small_fixed):
        return world

    def kept(measure: Callable[[sitk.Image, sitk.Image, np.ndarray], float], share: float = 1.0) -> bool:
        before, after = (measure(small_fixed, small_moving, matrix) for matrix in (start, found))
        return after >= share * before

    better = kept(_score) and kept(_likeness) and kept(_overlap, _KEPT_OVERLAP)
    return from_unit @ found @ to_unit if better else world


def _near(found: np.ndarray, start: np.ndarray, fixed: sitk.Image) -> bool:
    """Whether one map changes another but little: a nearer look is to correct it, not to find another place."""
    grid = geometry_of(fixed)
    corners = grid.matrix @ np.c_[grid.corners_vox, np.ones(8)].T
    moved = np.linalg.norm(((found - start) @ corners)[:3], axis=0).max()
    stretch = np.linalg.svd((np.linalg.inv(start) @ found)[:3, :3], compute_uv=False)
    least, most = _NEAR_STRETCH
    return bool(moved <= _NEAR_SHIFT and least <= stretch.min() and stretch.max() <= most)


def _overlap(fixed: sitk.Image, moving: sitk.Image, matrix: np.ndarray) -> float:
    """Share of the fixed scan that a map carries into the moving one."""
    return float(np.isfinite(_warped(fixed, moving, matrix)).mean())


def unmoved(image: sitk.Image) -> Alignment:
    """The alignment of a scan with itself."""
    with one_itk_thread():
        score = _score(image, image, np.eye(4))
    score = score if np.isfinite(score) else 0.0
    identity = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    return Alignment(matrix=identity, method="affine", score_before=score, score_after=score)


def _refine(fixed: sitk.Image, moving: sitk.Image, start: np.ndarray) -> np.ndarray | None:
    """Rigid on coarse levels, then affine down to the finest; None where the registration gives up."""
    levels = _levels(fixed, moving)
    try:
        rigid = sitk.VersorRigid3DTransform()
        rigid.SetTranslation(start[:3, 3].tolist())
        for shrink in levels[:-1] or levels:
            _optimise(fixed, moving, rigid, shrink)
        affine = sitk.AffineTransform(rigid.GetMatrix(), rigid.GetTranslation())
        for shrink in levels:
            _optimise(fixed, moving, affine, shrink)
    except RuntimeError:
        return None
    return _matrix_of(affine)


def _matrix_of(affine: sitk.AffineTransform) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(affine.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = affine.GetTranslation()
    return matrix


def _optimise(
    fixed: sitk.Image, moving: sitk.Image, parameters: sitk.Transform, shrink: int, *, least_samples: int = 0
) -> None:
    """Improve a transform in place on one level; on the finest, a share of the voxels is looked at if they are many."""
    registration = _metric(parameters)
    if shrink == 1 and _FINEST_SAMPLED * fixed.GetNumberOfPixels() >= least_samples:
        registration.SetMetricSamplingStrategy(registration.REGULAR)
        registration.SetMetricSamplingPercentage(_FINEST_SAMPLED, _SEED)
    registration.SetShrinkFactorsPerLevel([shrink])
    registration.SetSmoothingSigmasPerLevel([0.5 * shrink if shrink > 1 else 0.0])
    registration.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    step = _STEP * shrink * min(fixed.GetSpacing())
    registration.SetOptimizerAsRegularStepGradientDescent(
        learningRate=step, minStep=step / 50, numberOfIterations=_ITERATIONS, relaxationFactor=0.6
    )
    registration.Execute(fixed, moving)


def _metric(parameters: sitk.Transform) -> sitk.ImageRegistrationMethod:
    registration = sitk.ImageRegistrationMethod()
    registration.SetNumberOfThreads(1)
    registration.SetMetricAsMattesMutualInformation(_BINS)
    registration.SetInterpolator(sitk.sitkLinear)
    registration.SetInitialTransform(parameters, inPlace=True)
    return registration


def _levels(fixed: sitk.Image, moving: sitk.Image) -> list[int]:
    """Shrink factors, coarsest first, that leave enough voxels on every axis; 1 always."""
    shortest = min(*fixed.GetSize(), *moving.GetSize())
    return [factor for factor in (4, 2) if shortest // factor >= _MIN_LEVEL_VOXELS] + [1]


def _score(fixed: sitk.Image, moving: sitk.Image, matrix: np.ndarray) -> float:
    """Similarity under a map; minus infinity when too little overlaps."""
    transform = itk_affine(matrix)
    try:
        score = -float(_metric(transform).MetricEvaluate(fixed, moving))
    except RuntimeError:
        return -np.inf
    return score if np.isfinite(score) else -np.inf


def _other_starts(fixed: sitk.Image, moving: sitk.Image, unit: float) -> Iterator[np.ndarray]:
    """Centres of mass on each other, and the scans as they lie in the world; both in unit worlds."""
    centre_fixed, centre_moving = geometry_of(fixed).centre_mm, geometry_of(moving).centre_mm
    mass = (_centre_of_mass(moving) - centre_moving) - (_centre_of_mass(fixed) - centre_fixed)
    for shift in (mass, centre_fixed - centre_moving):
        matrix = np.eye(4)
        matrix[:3, 3] = shift / unit
        yield matrix


def _likeness(fixed: sitk.Image, moving: sitk.Image, matrix: np.ndarray) -> float:
    """Correlation of two scans under a map."""
    return correlation(sitk.GetArrayFromImage(fixed), _warped(fixed, moving, matrix))


def _warped(fixed: sitk.Image, moving: sitk.Image, matrix: np.ndarray) -> np.ndarray:
    """The moving scan (z, y, x) on the fixed one's grid, NaN where it does not reach."""
    still = sitk.Cast(moving, sitk.sitkFloat32)
    return sitk.GetArrayFromImage(sitk.Resample(still, fixed, itk_affine(matrix), sitk.sitkLinear, np.nan))


def _centre_of_mass(image: sitk.Image) -> np.ndarray:
    """World position of the mean of intensities above the lowest; the grid's centre for a constant image."""
    weight = sitk.GetArrayFromImage(image).astype(np.float64)
    weight -= weight.min()
    grid = geometry_of(image)
    if not weight.any():
        return grid.centre_mm
    index = [np.average(positions, weights=weight) for positions in np.indices(weight.shape)]
    return grid.matrix[:3, :3] @ np.array(index[::-1]) + grid.matrix[:3, 3]


def _in_units(
    fixed: sitk.Image, moving: sitk.Image, unit: float
) -> tuple[sitk.Image, sitk.Image, np.ndarray, np.ndarray]:
    """Both scans in their unit worlds, the way into the fixed one's, and the way out of the moving one's."""
    to_unit, from_unit = _unit_world(fixed, unit), np.linalg.inv(_unit_world(moving, unit))
    return _moved(fixed, to_unit), _moved(moving, np.linalg.inv(from_unit)), to_unit, from_unit


def _unit_world(image: sitk.Image, unit: float) -> np.ndarray:
    """World to a world about the image's centre, in `unit` mm: there shifts and matrix entries are of one size."""
    matrix = np.diag([1 / unit, 1 / unit, 1 / unit, 1.0])
    matrix[:3, 3] = -geometry_of(image).centre_mm / unit
    return matrix


def _moved(image: sitk.Image, world: np.ndarray) -> sitk.Image:
    grid = geometry_of(image)
    moved = sitk.Image(image)
    moved.SetSpacing((np.array(image.GetSpacing()) * world[0, 0]).tolist())
    moved.SetOrigin((world @ grid.matrix[:, 3])[:3].tolist())
    return moved


def _plausible(matrix: np.ndarray, fixed: sitk.Image, moving: sitk.Image) -> bool:
    """Whether a map neither collapses, mirrors nor tears a body, and keeps the centre of the one inside the other."""
    stretch = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    determinant = np.linalg.det(matrix[:3, :3])
    whole = _DETERMINANT[0] <= determinant <= _DETERMINANT[1]
    if not whole or stretch.min() < _STRETCH[0] or stretch.max() > _STRETCH[1]:
        return False
    return _holds(moving, matrix[:3, 3]) or _holds(fixed, np.linalg.inv(matrix)[:3, 3])


def _holds(image: sitk.Image, point: np.ndarray) -> bool:
    """Whether a point lies in a scan's field of view."""
    index = image.TransformPhysicalPointToContinuousIndex(point.tolist())
    return all(-0.5 <= i <= n - 0.5 for i, n in zip(index, image.GetSize(), strict=True))
