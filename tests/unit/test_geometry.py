import numpy as np
import pytest
import SimpleITK as sitk

from rrlsam.geometry import Geometry, geometry_of, index_map, make_geometry, tiles, to_sitk


def _oblique() -> Geometry:
    image = sitk.Image(7, 6, 5, sitk.sitkFloat32)
    image.SetSpacing((0.5, 2.0, 3.0))
    image.SetOrigin((10.0, -20.0, 5.0))
    turn = sitk.Euler3DTransform()
    turn.SetRotation(0.2, -0.1, 0.3)
    image.SetDirection(turn.GetMatrix())
    return geometry_of(image)


def test_a_grid_of_an_image_maps_indices_as_itk_does():
    image = to_sitk(np.zeros((5, 6, 7), dtype=np.float32), _oblique())
    world = _oblique().matrix @ [3, 2, 1, 1]
    assert np.allclose(world[:3], image.TransformIndexToPhysicalPoint((3, 2, 1)))


def test_an_image_made_on_a_grid_has_that_grid():
    back = geometry_of(to_sitk(np.zeros((5, 6, 7)), _oblique()))
    assert back.shape == (5, 6, 7)
    assert np.allclose(back.matrix, _oblique().matrix)


def test_spacing_and_extent_come_in_array_order():
    assert np.allclose(_oblique().spacing_mm, (3.0, 2.0, 0.5))
    assert np.allclose(_oblique().extent_mm, (15.0, 12.0, 3.5))


def test_a_box_starts_at_its_first_voxel_and_may_reach_outside():
    box = _oblique().box((-1, 2, 3), (4, 5, 9))
    assert box.shape == (5, 3, 6)
    assert np.allclose(box.matrix @ [0, 0, 0, 1], _oblique().matrix @ [3, 2, -1, 1])


def test_another_spacing_keeps_the_field_of_view():
    grid = _oblique()
    coarse = grid.with_spacing((1.5, 4.0, 0.25))
    assert coarse.shape == (10, 3, 14)
    assert np.allclose(coarse.extent_mm, grid.extent_mm)
    assert np.allclose(coarse.centre_mm, grid.centre_mm)


def test_a_very_coarse_spacing_leaves_one_voxel():
    assert _oblique().with_spacing((500.0, 500.0, 500.0)).shape == (1, 1, 1)


def test_the_index_map_between_a_grid_and_its_box_is_a_shift():
    grid = _oblique()
    assert np.allclose(index_map(grid.box((1, 2, 3), (4, 5, 6)), grid)[:3, 3], (3, 2, 1))


def test_the_index_map_goes_through_a_given_world_map():
    grid = make_geometry((4, 4, 4), np.eye(4))
    world = np.eye(4)
    world[0, 3] = 7.0
    assert np.allclose(index_map(grid, grid, world)[:3, 3], (7, 0, 0))


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 16, 23), (30, 8, 13)])
def test_tiles_cover_everything_and_stay_inside(shape, overlap):
    seen = np.zeros(shape, dtype=int)
    for box in tiles(shape, (8, 8, 8), overlap):
        assert all(part.start >= 0 and part.stop <= n for part, n in zip(box, shape, strict=True))
        seen[box] += 1
    assert (seen > 0).all()


def test_tiles_are_never_more_than_there_are_places_for_them():
    assert len(list(tiles((8, 8, 12), (8, 8, 10), 1 - 1e-12))) == len(list(tiles((8, 8, 12), (8, 8, 10), 1.0))) == 3


def test_neighbouring_tiles_overlap_by_the_share_asked_for():
    starts = sorted({box[2].start for box in tiles((8, 8, 50), (8, 8, 10), 0.5)})
    assert max(np.diff(starts)) <= 5
    assert (starts[0], starts[-1]) == (0, 40)


def test_a_patch_as_large_as_the_grid_is_one_tile():
    assert len(list(tiles((8, 9, 10), (8, 9, 10), 0.5))) == 1
