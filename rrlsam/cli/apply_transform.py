"""rrlsam_apply_transform: images, labels or points through a transform of rrlsam_register."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rrlsam.cli.common import make_parser, run
from rrlsam.errors import UsageError
from rrlsam.system.safe_output import require_safe_file


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    parser = make_parser(
        "rrlsam_apply_transform",
        "Bring an image, labels or points from a registration's moving scan to its fixed one, or back.",
    )
    parser.add_argument("-i", type=Path, required=True, metavar="IN", help="image or label map; points: a .csv file")
    parser.add_argument("-t", type=Path, required=True, metavar="FILE", help="CASE_Transform.json of rrlsam_register")
    parser.add_argument("-o", type=Path, required=True, metavar="OUT", help="file to write")
    parser.add_argument(
        "-r", type=Path, metavar="IMAGE", help="write in this image's grid (default: the target scan's)"
    )
    parser.add_argument("--labels", action="store_true", help="IN is a label map: only its values may appear")
    parser.add_argument("--inverse", action="store_true", help="from the fixed scan to the moving one")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    return run(_work, parser, argv)


def _work(arguments: argparse.Namespace) -> int:
    require_safe_file(arguments.o, (arguments.i, arguments.t, arguments.r), overwrite=arguments.overwrite)
    points = arguments.i.suffix.lower() == ".csv"
    if points and (arguments.r is not None or arguments.labels):
        raise UsageError("-r and --labels are for images; points have no grid")
    if points and arguments.o.suffix.lower() != ".csv":
        raise UsageError(f"-o {arguments.o}: must end in .csv, as IN does; give another name")

    from rrlsam.geometry import geometry_of
    from rrlsam.registration.apply import read_points, warp_image, warp_labels, warp_points, write_points
    from rrlsam.registration.transform_files import load_transform
    from rrlsam.scans.volume import read_image, read_labels, require_image_name, write_image

    if not points:
        require_image_name(arguments.o)
    transform, _ = load_transform(arguments.t)
    if points:
        header, rows, given = read_points(arguments.i)
        write_points(header, rows, warp_points(given.tolist(), transform, inverse=arguments.inverse), arguments.o)
        return 0
    onto = None if arguments.r is None else geometry_of(read_image(arguments.r))
    if arguments.labels:
        warped = warp_labels(read_labels(arguments.i), transform, inverse=arguments.inverse, onto=onto)
    else:
        warped = warp_image(read_image(arguments.i), transform, inverse=arguments.inverse, onto=onto)
    write_image(warped, arguments.o)
    return 0
