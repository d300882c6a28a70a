"""What all commands share: parsing with suggestions, one-line errors, exit codes, folders. Imports nothing heavy."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rrlsam.cli.reporting import start_logging
from rrlsam.cli.speaking import Patient, printable, settle, spoken_to
from rrlsam.errors import PartialFailure, ResourceError, RrlsamError, listed
from rrlsam.settings import DEVICES
from rrlsam.system.files import spelt
from rrlsam.system.shortage import shortage_of
from rrlsam.system.stopping import Terminated, end_at_once, terminable

if TYPE_CHECKING:
    from rrlsam.scans.repairs import Repairs
    from rrlsam.workspace import Workspace

CONFIGURATION = "3d_fullres"
"""What nnU-Net's users type; accepted, since it is what rrlsam does."""
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Parser(argparse.ArgumentParser):
    """An argument parser that suggests the option that was meant."""

    given: Sequence[str] = ()
    """What is being parsed, for the error message."""

    def _get_option_tuples(self, option_string: str) -> list[tuple[argparse.Action, str, str | None]]:
        """No guesses: argparse would take -step for -step_size, and -fold for -f with the value "old"."""
        return []

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one sentence."""
        found = re.match(r"unrecognized arguments: (\S+)", message)
        unknown = found[1] if found else self._unknown() if "arguments are required" in message else None
        if unknown:
            close = difflib.get_close_matches(unknown.split("=")[0], self._option_string_actions, n=1)
            message = f"unknown option {unknown!r}" + (f"; did you mean {close[0]}?" if close else "")
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)

    def _unknown(self) -> str | None:
        """The first option that does not exist: likelier to be what is wrong than what is missing because of it."""
        options = (text for text in self.given if re.match(r"--?[A-Za-z]", text))
        return next((text for text in options if text.split("=")[0] not in self._option_string_actions), None)


def make_parser(prog: str, description: str) -> Parser:
    """A parser for one command; abbreviations of options are not accepted."""
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    return parser


def add_folder_options(parser: argparse.ArgumentParser, *which: str) -> None:
    """Add --raw, --preprocessed and --results as asked for."""
    for name in which:
        parser.add_argument(
            f"--{name}", type=Path, metavar="FOLDER", help=f"else rrlsam_{name}, else nnUNet_{name} of the environment"
        )


def add_atlas_options(parser: argparse.ArgumentParser) -> None:
    """Add --atlas and --shots."""
    parser.add_argument(
        "--atlas",
        metavar="CASE[,CASE]",
        help="labelled case to learn from, or several, the registration's atlas first (default: chosen by images)",
    )
    parser.add_argument(
        "--shots",
        type=count,
        metavar="N",
        help="labels to learn from (default 1; those not named are chosen by images)",
    )


def atlas_names(text: str | None) -> tuple[str, ...]:
    """Names of "CASE[,CASE]"."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add -device."""
    parser.add_argument(
        "-device", default="auto", choices=DEVICES, help="where to compute (default: auto, a CUDA GPU or else the CPU)"
    )


def add_progress_option(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add --disable_progress_bar, under further names too."""
    parser.add_argument("--disable_progress_bar", *names, action="store_true", help="no progress bar")


def add_nnunet_options(parser: argparse.ArgumentParser, *, flags: Sequence[str], numbers: Sequence[str] = ()) -> None:
    """Add options of nnU-Net's that change nothing here, so that its users' scripts run."""
    nothing = "accepted for nnU-Net's sake: changes nothing"
    for name in flags:
        parser.add_argument(name, action="store_true", help=nothing)
    for name in numbers:
        parser.add_argument(name, type=number_of_steps, metavar="N", help=nothing)


def add_repair_options(parser: argparse.ArgumentParser) -> None:
    """Add --fix_nonfinite and --allow_geometry_mismatch."""
    parser.add_argument(
        "--fix_nonfinite",
        action="store_true",
        help="replace NaN and infinite voxels by the smallest or largest finite value, instead of refusing the scan",
    )
    parser.add_argument(
        "--allow_geometry_mismatch",
        action="store_true",
        help="take files of one case that are of the same size but lie elsewhere voxel by voxel, instead of refusing",
    )


def repairs_of(arguments: argparse.Namespace) -> Repairs:
    """What the user allowed to be mended."""
    from rrlsam.scans.repairs import Repairs

    return Repairs(fix_nonfinite=arguments.fix_nonfinite, allow_geometry_mismatch=arguments.allow_geometry_mismatch)


def workspace_of(arguments: argparse.Namespace) -> Workspace:
    """The three roots from flags and environment."""
    from rrlsam.workspace import make_workspace

    return make_workspace({name: getattr(arguments, name, None) for name in ("raw", "preprocessed", "results")})


def duration(text: str) -> float:
    """Seconds from "90s", "20m", "8h", "1d" or a plain number of seconds."""
    match = _DURATION.fullmatch(text.strip())
    if not match or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90s, 20m or 8h")
    return float(match[1]) * _SECONDS[match[2]]


def positive(text: str) -> float:
    """A number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def count(text: str) -> int:
    """A whole number, at least 1."""
    return _whole(text, 1, "above 0")


def configuration(text: str) -> str:
    """nnU-Net's name of the one configuration that there is; any other is refused."""
    if text != CONFIGURATION:
        raise argparse.ArgumentTypeError(f"{text!r}: there is one configuration only, {CONFIGURATION}; leave it out")
    return text


def folder_name(text: str) -> str:
    """A name that a folder can have and that stays in its place."""
    if not text.strip(". ") or not text.isprintable() or any(c in text for c in "/\\") or len(os.fsencode(text)) > 200:
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is not a name that a folder can have")
    return text


def plain_text(text: str) -> str:
    """A text that UTF-8 can hold, which not every argument is."""
    if spelt(text) != text:
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is not UTF-8")
    return text


def seed(text: str) -> int:
    """A whole number that random generators take."""
    return _whole(text, 0, "of at least 0 and at most 18 digits")


def workers(text: str) -> int:
    """A number of workers, at least 1; nnU-Net's 0, no further processes, is one too."""
    return max(1, _whole(text, 0, "of at least 0"))


def number_of_steps(text: str) -> int:
    """A whole number, at least 0."""
    return _whole(text, 0, "of at least 0")


def _whole(text: str, least: int, wanted: str) -> int:
    if not text.isdecimal() or len(text) > 18 or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {wanted}")
    return int(text)


def partial_failure(reasons: Sequence[str], n_scans: int, what: str = "failed") -> PartialFailure:
    """The error of a command that did some scans and not others; names the first ten reasons."""
    return PartialFailure(f"{len(reasons)} of {n_scans} scans {what}: {listed(reasons, '; ')}")


def run(work: Callable[[argparse.Namespace], int], parser: Parser, argv: Sequence[str] | None) -> int:
    """Parse and work; every failure becomes one line on stderr and its exit code."""
    parser.given = sys.argv[1:] if argv is None else argv
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    start_logging(debug=arguments.debug)
    try:
        out = None if sys.stdout is None else Patient(sys.stdout)
        code = _run(work, arguments, parser, out)
        settle(sys.stdout)
        lost = None if out is None else out.lost
        if code == 0 and lost is not None:
            code = _failed(parser, f"what it says could not be written ({lost.strerror})", ResourceError.exit_code)
        return code
    finally:
        settle(sys.stderr)


def _run(
    work: Callable[[argparse.Namespace], int], arguments: argparse.Namespace, parser: Parser, out: Patient | None
) -> int:
    try:
        with terminable(), spoken_to(out):
            return work(arguments)
    except KeyboardInterrupt:
        return _stopped(parser, "interrupted", 130)
    except Terminated:
        return _stopped(parser, "terminated", 143)
    except RrlsamError as error:
        return _failed(parser, str(error), error.exit_code, debug=arguments.debug)
    except Exception as error:
        shortage = shortage_of(error)
        if shortage is not None:
            return _failed(parser, str(shortage), shortage.exit_code, debug=arguments.debug)
        if isinstance(error, OSError) and error.errno is not None:
            where = "" if error.filename is None else f"{error.filename}: "
            reason = f"{where}refused by the system ({error.strerror}); check the path, its permissions and the disk"
            return _failed(parser, reason, ResourceError.exit_code, debug=arguments.debug)
        first = next(iter(str(error).splitlines()), "")
        reason = f"internal error, {type(error).__name__}: {first}; run again with --debug and report it"
        return _failed(parser, reason, 1, debug=arguments.debug)


def _stopped(parser: Parser, how: str, code: int) -> int:
    end_at_once(code)
    return _failed(parser, how, code)


def _failed(parser: Parser, reason: str, code: int, *, debug: bool = False) -> int:
    """Say why, after the traceback if that was asked for; nobody may be there to read it."""
    with contextlib.suppress(OSError):
        if debug:
            traceback.print_exc()
        print(printable(f"{parser.prog}: {reason}"), file=sys.stderr)
    return code
