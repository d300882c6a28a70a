"""rrlsam_jacobian: how a displacement field changes volumes, and where it folds."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rrlsam.cli.common import make_parser, run
from rrlsam.system.safe_output import require_safe_file


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    parser = make_parser("rrlsam_jacobian", "Determinant map and numbers of a displacement field in LPS mm.")
    parser.add_argument("field", type=Path, metavar="FIELD", help="such as CASE_1Warp.nii.gz")
    parser.add_argument("-o", type=Path, metavar="MAP", help="write the determinant map to this image file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file")
    parser.add_argument("--overwrite", action="store_true", help="replace MAP and FILE if they exist")
    return run(_work, parser, argv)


def _work(arguments: argparse.Namespace) -> int:
    import numpy as np

    from rrlsam.errors import BadInputError
    from rrlsam.geometry import geometry_of
    from rrlsam.nets.jacobian import jacobian_determinant, jacobian_numbers
    from rrlsam.registration.pair import in_voxels
    from rrlsam.scans.volume import channels_first, read_field, require_image_name, write_like
    from rrlsam.system.jsonio import save_json

    require_safe_file(arguments.o, (arguments.field,), overwrite=arguments.overwrite)
    require_safe_file(arguments.json, (arguments.field, arguments.o), "--json", overwrite=arguments.overwrite)
    if arguments.o is not None:
        require_image_name(arguments.o)
    image = read_field(arguments.field)
    if min(image.GetSize()) < 3:
        raise BadInputError(f"{arguments.field}: {image.GetSize()} voxels; derivatives need three or more on each axis")
    displacement = in_voxels(channels_first(image), geometry_of(image))
    numbers = jacobian_numbers(displacement)
    for name, value in dataclasses.asdict(numbers).items():
        print(f"{name:22s} {value:.6g}")
    if arguments.json is not None:
        save_json(numbers, arguments.json)
    if arguments.o is not None:
        write_like(jacobian_determinant(displacement).astype(np.float32), image, arguments.o)
    return 0
