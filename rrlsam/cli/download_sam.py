"""rrlsam_download_sam: SAM's weights into the cache folder, from the network or from a file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rrlsam.cli.common import add_progress_option, make_parser, run
from rrlsam.settings import SAM_MODELS


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point."""
    parser = make_parser(
        "rrlsam_download_sam", "Download SAM's official weights, check them and keep them where training finds them."
    )
    parser.add_argument("model", nargs="?", choices=SAM_MODELS, help=f"which weights (default: {SAM_MODELS[0]})")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="check and install this file instead; needs no network"
    )
    add_progress_option(parser)
    return run(_work, parser, argv)


def _work(arguments: argparse.Namespace) -> int:
    from rrlsam.cli.reporting import progress_of
    from rrlsam.teacher.sam_download import download, install
    from rrlsam.teacher.sam_releases import RELEASES, cache_folder, problem_of

    folder = cache_folder()
    if arguments.source is not None:
        wanted = RELEASES.values() if arguments.model is None else [RELEASES[arguments.model]]
        print(install(arguments.source, wanted, folder))
        return 0
    release = RELEASES[arguments.model or SAM_MODELS[0]]
    path = folder / release.file
    if not path.exists() or problem_of(path, release):
        download(release, folder, progress_of(arguments))
    print(path)
    return 0
