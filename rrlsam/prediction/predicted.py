"""What is known of predictions without any truth, and what each was made of: only masks that still fit are kept.

OUTPUT/report.json           all scans of the last run
OUTPUT/.rrlsam/CASE.json     written after all files of a case, with their hashes (system/own_results.py: the rest)
"""

from collections.abc import Sequence
from pathlib import Path

from rrlsam import __version__
from rrlsam.errors import BadInputError, UsageError
from rrlsam.prediction.confidence import StructureConfidence
from rrlsam.scans.inputs import InputScan
from rrlsam.scans.repairs import NO_REPAIRS, Repairs
from rrlsam.scans.volume import content_of
from rrlsam.system.files import real, sha256
from rrlsam.system.jsonio import load_or_none, record, save_json
from rrlsam.system.own_results import HIDDEN
from rrlsam.system.safe_output import require_safe_folder

REGISTRATION_FOLDER = "registration"


@record
class Options:
    """What to compute and to write besides the masks."""

    save_probabilities: bool = False
    save_registration: bool = False
    average: bool = True
    """Average over turned views and, if the plan mirrors or reflects, mirrored ones."""
    evidence: bool = True
    """Correct the segmentation by the scan's own intensities."""
    overlap: float = 0.5
    refinement_iterations: int | None = None
    """Steps by which the registration's field is refined for each scan; None: as the model's plan says."""


@record
class ScanReport:
    """What is known of one prediction without any truth."""

    case: str
    failure: str | None
    """Why there is no mask, or None."""
    alignment: str | None
    """How the affine alignment ended: affine, or centre for any of several models."""
    fold_percent: float | None
    """Folded voxels of the registration on the atlas grid (ten one-sided determinants); None after a failure."""
    predicted_dice: float | None
    """Mean over the structures that are shown, each of which stands in confidence.csv; None after a failure.

    0 for a scan that could not be aligned with the atlas or hardly looks like it, whatever its mask.
    """
    look_at: tuple[str, ...]
    """What is strange about the prediction; empty: nothing."""
    seconds: float
    likeness: float | None = None
    """Correlation of the scan with the warped atlas; near 0 or negative: hardly of the atlas's kind. The least of
    several models."""


@record
class Report:
    """All predictions of a run."""

    scans: tuple[ScanReport, ...]

    @property
    def failures(self) -> dict[str, str]:
        """Case to reason."""
        return {scan.case: scan.failure for scan in self.scans if scan.failure is not None}


@record
class Predicted:
    """One prediction: what went in, what came out."""

    inputs: str
    """SHA-256 of the scan's files."""
    models: str
    """SHA-256 of the checkpoints."""
    options: Options
    version: str
    repairs: Repairs = NO_REPAIRS
    outputs: dict[str, str]
    """SHA-256 of every file that was written, by its path in the output folder."""
    report: ScanReport
    confidence: tuple[StructureConfidence, ...]


class Ledger:
    """The records of an output folder; with `resume`, predictions that they prove to fit are kept."""

    def __init__(self, output: Path, checkpoints: Sequence[Path], options: Options, *, resume: bool) -> None:
        self._output = output
        self._models = sha256(*checkpoints)
        self._options = options
        self._resume = resume

    def kept(self, scan: InputScan) -> Predicted | None:
        """The record of a prediction that was made of this very scan by these models, and is whole."""
        known = load_or_none(Predicted, self._path(scan)) if self._resume else None
        if known is None:
            return None
        try:
            found = self._record(scan, known.report, known.confidence)
        except (BadInputError, OSError):
            return None  # a file is missing: predicting it again tells which
        return known if found == known else None

    def note(self, scan: InputScan, report: ScanReport, confidence: tuple[StructureConfidence, ...]) -> None:
        """Keep the record of a prediction whose files are all there."""
        save_json(self._record(scan, report, confidence), self._path(scan))

    def _record(self, scan: InputScan, report: ScanReport, confidence: tuple[StructureConfidence, ...]) -> Predicted:
        names = output_names(scan, self._options)
        return Predicted(
            inputs=content_of(*scan.images),
            models=self._models,
            options=self._options,
            version=__version__,
            repairs=scan.repairs,
            outputs={name: sha256(self._output / name) for name in names},
            report=report,
            confidence=confidence,
        )

    def _path(self, scan: InputScan) -> Path:
        return self._output / HIDDEN / f"{scan.case}.json"


def output_names(scan: InputScan, options: Options) -> tuple[str, ...]:
    """Paths in the output folder of all files that a prediction writes, the mask last."""
    mask = f"{scan.case}{scan.ending}"
    probabilities = (f"{scan.case}.npz",) if options.save_probabilities else ()
    registration = (f"{REGISTRATION_FOLDER}/{mask}",) if options.save_registration else ()
    return (*probabilities, *registration, mask)


def require_safe_output(scans: Sequence[InputScan], output: Path, options: Options) -> None:
    """UsageError if predictions would be written into a raw data set or over a scan."""
    require_safe_folder(output)
    scan_files = {real(path) for scan in scans for path in scan.images}
    for scan in scans:
        for name in output_names(scan, options):
            if real(output / name) in scan_files:
                raise UsageError(f"-o {output}: {name} would replace a scan; give another folder")
