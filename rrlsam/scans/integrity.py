"""Everything that is wrong with a data set, found in one pass before any work is done."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rrlsam.errors import SHOWN, BadInputError
from rrlsam.scans.dataset import Dataset, Scan
from rrlsam.scans.scan_checks import CheckImages, Finding, check_images, check_scan
from rrlsam.scans.volume import ENDINGS, content_of
from rrlsam.system.files import atomic_write, is_clutter, spelt
from rrlsam.system.parallel import for_each
from rrlsam.system.progress import Progress, silent

REPORT = "report.json"
_log = logging.getLogger(__name__)


def check_dataset(
    dataset: Dataset,
    *,
    look: CheckImages = check_images,
    workers: int | None = None,
    progress: Progress = silent,
) -> list[Finding]:
    """All findings, errors first. Labels are looked at here only to be found faulty; nothing about them is kept."""
    scans = {f"{number} {scan.case}": scan for number, scan in enumerate(dataset.scans)}
    checked = for_each(
        lambda scan: check_scan(scan, dataset.labels, look), scans, "Integrity", workers=workers, progress=progress
    )
    findings = [finding for found in checked.values() for finding in found]
    for check in (_counts, _channels, _strays, _repeated_names, _orphan_labels, _duplicates):
        findings += check(dataset)
    return sorted(set(findings))


def require_sound(findings: Sequence[Finding], report: Path) -> None:
    """BadInputError with the first ten errors, if there is any; of warnings the first ten are logged.

    All findings stand in `report` then.
    """
    with atomic_write(report) as temporary:
        temporary.write_text(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=2) + "\n")
    errors, warnings = ([f for f in findings if f.severity == severity] for severity in ("error", "warning"))
    for finding in warnings[:SHOWN]:
        _log.warning("%s", spelt(finding))
    if len(warnings) > SHOWN:
        _log.warning("and %d warnings more; all stand in %s", len(warnings) - SHOWN, report)
    if not errors:
        return
    lines = [f"the data set has {len(errors)} error{'s' if len(errors) > 1 else ''}; mend them and run again:"]
    lines += [f"  {finding}" for finding in errors[:SHOWN]]
    if len(errors) > SHOWN:
        lines.append(f"  and {len(errors) - SHOWN} more; all {len(errors)} stand in {report}")
    raise BadInputError("\n".join(lines))


def _error(file: Path, problem: str, fix: str) -> Finding:
    return Finding(severity="error", file=str(file), problem=problem, fix=fix)


def _warning(file: Path, problem: str, fix: str) -> Finding:
    return Finding(severity="warning", file=str(file), problem=problem, fix=fix)


def _counts(dataset: Dataset) -> Iterator[Finding]:
    """numTraining, labels and unlabelled scans."""
    source = dataset.folder / "dataset.json"
    labelled, total = len(dataset.labelled), len(dataset.scans)
    in_training = sum(not _in_folder(scan, "imagesUn") for scan in dataset.scans)
    if dataset.num_training not in (labelled, in_training, total):
        problem = f"numTraining is {dataset.num_training}, but {in_training} training cases were found"
        yield _error(source, problem, f"set it to {in_training} or add what is missing")
    if not labelled:
        yield _error(dataset.folder, "no scan has a label", "put the label of at least one scan into labelsTr")
    elif total == 1:
        fix = "add scans without labels to imagesUn, since learning needs them"
        yield _warning(dataset.folder, "there is no scan besides the atlas", fix)


def _channels(dataset: Dataset) -> Iterator[Finding]:
    wanted = len(dataset.channel_names)
    for scan in dataset.scans:
        if len(scan.images) != wanted:
            problem = f"dataset: {scan.case}: {len(scan.images)} image file(s), but channel_names has {wanted}"
            yield _error(dataset.folder / "dataset.json", problem, "list one file a channel")


def _strays(dataset: Dataset) -> Iterator[Finding]:
    ending = dataset.file_ending
    for path in dataset.strays:
        own = next((known for known in ENDINGS if path.name.endswith(known)), path.suffix)
        stem = path.name.removesuffix(own)
        if "\n" in path.name:
            yield _error(path.parent, f"{path.name!r} has a line break in its name", "rename it")
        elif own != ending:
            yield _error(path, f"does not end in {ending}", "convert or remove it; all files must have file_ending")
        elif stem[-5:-4] == "_" and stem[-4:].isdigit():
            channels = len(dataset.channel_names)
            fix = f"declare it, remove it, or if the number is the scan's own, rename it to {stem}_0000{ending}"
            yield _error(path, f"channel {stem[-4:]} is not among the {channels} of channel_names", fix)
        else:
            yield _error(path, "is not named CASE_CCCC" + ending, f"rename it to {stem}_0000{ending} or remove it")


def _repeated_names(dataset: Dataset) -> Iterator[Finding]:
    seen: set[str] = set()
    for scan in dataset.scans:
        if scan.case in seen:
            yield _error(scan.images[0], f"another scan is called {scan.case} too", "rename one of them")
        seen.add(scan.case)


def _orphan_labels(dataset: Dataset) -> Iterator[Finding]:
    """Label files without a scan in imagesTr; only where dataset.json does not list the files itself."""
    folder = dataset.folder / "labelsTr"
    if not folder.is_dir() or "dataset" in json.loads((dataset.folder / "dataset.json").read_bytes()):
        return
    used = {scan.label for scan in dataset.scans}
    for path in sorted(folder.iterdir()):
        if path not in used and not is_clutter(path):
            fix = f"name it CASE{dataset.file_ending} after a scan in imagesTr, add that scan or remove the label"
            yield _error(path, "a label without a scan", fix)


def _duplicates(dataset: Dataset) -> Iterator[Finding]:
    """Scans of one content; one that cannot be read is an error already."""
    by_size: dict[tuple[int, ...], list[Scan]] = {}
    for scan in dataset.scans:
        if scan.images and all(path.is_file() for path in scan.images):
            by_size.setdefault(tuple(path.stat().st_size for path in scan.images), []).append(scan)
    first: dict[str, Scan] = {}
    for scan in (scan for alike in by_size.values() if len(alike) > 1 for scan in alike):
        try:
            content = content_of(*scan.images)
        except BadInputError:
            continue
        other = first.setdefault(content, scan)
        if other is not scan:
            yield _warning(scan.images[0], f"the same content as {other.images[0].name}", "remove one of them")


def _in_folder(scan: Scan, name: str) -> bool:
    return bool(scan.images) and scan.images[0].parent.name == name
