"""Displacement fields: what they mean, how they are integrated, resized and cut."""

import torch

from rrlsam.nets.displacement import identity_grid, integrate, resize_field, sample, warp
from rrlsam.nets.jacobian import fold_percent

SHAPE = (10, 12, 14)


def volume(shape: tuple[int, int, int] = SHAPE, channels: int = 2) -> torch.Tensor:
    return torch.rand((1, channels, *shape), generator=torch.Generator().manual_seed(0))


def constant_field(x: float, y: float, z: float, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    return torch.tensor([float(x), float(y), float(z)]).view(1, 3, 1, 1, 1).expand(1, 3, *shape).clone()


def smooth_field(amplitude: float, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    """Two sine waves an axis, zero at the border."""
    waves = [torch.sin(torch.linspace(0, 2 * torch.pi, n)) for n in shape]
    bump = waves[0][:, None, None] * waves[1][None, :, None] * waves[2][None, None, :]
    return amplitude * torch.tensor([1.0, -0.7, 0.5]).view(1, 3, 1, 1, 1) * bump


def test_a_displacement_of_zero_changes_nothing_up_to_the_borders():
    image = volume((20, 24, 22))
    torch.testing.assert_close(warp(image, constant_field(0, 0, 0, (20, 24, 22))), image, atol=1e-5, rtol=0)


def test_no_velocity_is_no_displacement():
    assert torch.equal(integrate(torch.zeros(1, 3, *SHAPE)), torch.zeros(1, 3, *SHAPE))


def test_warping_reads_the_volume_where_the_displacement_points():
    image = volume()
    moved = warp(image, constant_field(1, 2, 3))
    torch.testing.assert_close(moved[..., :-3, :-2, :-1], image[..., 3:, 2:, 1:], atol=1e-5, rtol=0)


def test_outside_the_volume_its_border_goes_on():
    image = volume()
    moved = warp(image, constant_field(0, 0, 100))
    torch.testing.assert_close(moved, image[..., -1:, :, :].expand_as(image), atol=1e-5, rtol=0)


def test_a_fraction_of_a_voxel_is_interpolated():
    ramp = torch.arange(14.0).expand(1, 1, *SHAPE)
    moved = warp(ramp, constant_field(0.25, 0, 0))
    torch.testing.assert_close(moved[..., :-1], ramp[..., :-1] + 0.25, atol=1e-5, rtol=0)


def test_a_constant_velocity_is_a_translation():
    velocity = constant_field(1.5, -0.5, 2.0)
    torch.testing.assert_close(integrate(velocity), velocity, atol=1e-4, rtol=0)


def test_the_flow_backward_undoes_the_flow_forward():
    velocity = smooth_field(1.0, (24, 24, 24))
    there, back = integrate(velocity), integrate(-velocity)
    points = identity_grid((24, 24, 24), there)
    returned = there + sample(back, points + there)
    assert float(there.abs().max()) > 0.5
    assert float(returned.abs().max()) < 0.05


def test_a_strong_smooth_velocity_does_not_fold_where_its_unintegrated_field_does():
    velocity = smooth_field(8.0, (24, 24, 24))
    assert fold_percent(velocity[0].numpy()) > 1
    assert fold_percent(integrate(velocity)[0].numpy()) == 0


def test_sampling_at_voxel_coordinates_gives_the_array():
    image = volume()
    z, y, x = 4, 7, 11
    point = torch.tensor([float(x), float(y), float(z)]).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(sample(image, point)[0, :, 0, 0, 0], image[0, :, z, y, x], atol=1e-5, rtol=0)


def test_a_volume_of_one_slice_can_be_sampled():
    image = volume((1, 6, 5))
    torch.testing.assert_close(sample(image, identity_grid((1, 6, 5), image)), image, atol=1e-5, rtol=0)


def test_a_resized_field_is_in_voxels_of_its_new_grid():
    resized = resize_field(constant_field(1, 1, 1, (4, 6, 8)), (8, 6, 24))
    torch.testing.assert_close(resized, constant_field(3, 1, 2, (8, 6, 24)))


def test_a_resized_field_covers_the_same_edges():
    """Voxel i of stride 2 covers voxels 2 i and 2 i + 1: its value belongs at 2 i + 0.5."""
    coarse = torch.zeros(1, 3, 4, 4, 8)
    coarse[0, 0] = torch.arange(8.0)
    fine = resize_field(coarse, (8, 8, 16))[0, 0, 0, 0] / 2
    torch.testing.assert_close(fine[1:-1], (torch.arange(16.0)[1:-1] - 0.5) / 2)


def test_a_field_that_has_the_size_already_is_left_alone():
    field = smooth_field(1.0)
    assert resize_field(field, SHAPE) is field


def test_a_velocity_of_half_the_resolution_moves_twice_as_many_fine_voxels():
    displacement = resize_field(integrate(constant_field(1.0, 0.5, 0.0, (5, 6, 7))), SHAPE)
    torch.testing.assert_close(displacement, constant_field(2.0, 1.0, 0.0), atol=1e-4, rtol=0)
