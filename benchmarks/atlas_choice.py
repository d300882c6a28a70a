"""What rrlsam_suggest_atlas's first choice is worth as an atlas, beside scans chosen at random.

    python benchmarks/atlas_choice.py -d 4 --raw RAW [--candidates 20] [--targets 6] [--scans 60]

Worth of an atlas: mean Dice of its label, moved as training would move it, brought to other scans by registration
without a model. The first choice and random candidates are registered to their own random targets. Labels are used to
score, not to choose. Appends a row to benchmarks/results/atlas_choice.md.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from common import RESULTS, hardware, test_scans, versions
from scipy.stats import spearmanr

from rrlsam.apply import warp_labels
from rrlsam.dataset import Dataset, Scan, find_dataset, load_dataset
from rrlsam.geometry import geometry_of, to_sitk
from rrlsam.label_offset import find_label_offset, move_label
from rrlsam.metrics import dice
from rrlsam.predict import InputScan
from rrlsam.progress import rich_progress
from rrlsam.register import register_images
from rrlsam.suggest import suggest_atlases
from rrlsam.volume import channels_first, read_channels, read_labels, to_canonical

TABLE = RESULTS / "atlas_choice.md"
HEADER = (
    "# Which scan to label, measured by benchmarks/atlas_choice.py\n\nRho: Spearman's correlation of an atlas's mean "
    "distance with its worth (Dice); good is -1.\n\n"
    "| data | scans | first choice | mean of random candidates | best, worst candidate | rho | notes |\n"
    "|---|---|---|---|---|---|---|\n"
)


def main() -> None:
    """Run the benchmark."""
    arguments = _parse()
    dataset = load_dataset(find_dataset(arguments.raw, arguments.d))
    labelled = [scan for scan in dataset.scans if scan.label is not None]
    labelled += test_scans(dataset) if (dataset.folder / "labelsTs").is_dir() else []
    scans = {scan.case: scan for scan in labelled[: arguments.scans]}
    given = [InputScan(case=s.case, images=s.images, ending=dataset.file_ending) for s in scans.values()]
    suggestion, _ = suggest_atlases(given, 1, rich_progress())
    first = suggestion.candidates[0].case
    random = np.random.default_rng(arguments.seed)
    candidates = random.permutation([case for case in scans if case != first])[: arguments.candidates].tolist()
    worth = {}
    with rich_progress()("Registering", 1 + len(candidates)) as advance:
        for case in [first, *candidates]:
            targets = random.permutation([other for other in scans if other != case])[: arguments.targets]
            worth[case] = _worth(scans[case], [scans[target] for target in targets], dataset, arguments)
            advance()
    distances = {candidate.case: candidate.distance for candidate in suggestion.candidates}
    rho = spearmanr([distances[case] for case in worth], list(worth.values())).statistic
    others = [worth[case] for case in candidates]
    note = (
        f"{len(others)} candidates, {arguments.targets} targets each, {arguments.iterations} steps, seed "
        f"{arguments.seed}; {datetime.date.today().isoformat()}, {hardware()}, {versions()}"
    )
    row = (
        f"| {dataset.name} | {len(scans)} | {first}: {worth[first]:.3f} | {np.mean(others):.3f} | "
        f"{max(others):.3f}, {min(others):.3f} | {rho:.2f} | {note} |\n"
    )
    TABLE.write_text((TABLE.read_text() if TABLE.exists() else HEADER) + row)
    print(row)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, help="number or name of the data set")
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--scans", type=int, default=60, help="labelled scans to choose from")
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--targets", type=int, default=6)
    parser.add_argument("--iterations", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", nargs="*", default=[], help="structures that are not scored")
    return parser.parse_args()


def _worth(atlas: Scan, targets: Sequence[Scan], dataset: Dataset, arguments: argparse.Namespace) -> float:
    """Mean Dice over targets and structures."""
    image, label = to_canonical(read_channels(atlas.images)), to_canonical(read_labels(_label(atlas)))
    values, channels = sitk.GetArrayFromImage(label).astype(np.int32), channels_first(image)
    shift = find_label_offset(values, channels, n_classes=dataset.labels.n_classes).shift_vox
    moved = to_sitk(move_label(values, shift), geometry_of(label))
    scores = []
    for target in targets:
        transform = register_images(read_channels(target.images), image, iterations=arguments.iterations)
        warped = sitk.GetArrayFromImage(warp_labels(moved, transform))
        truth = sitk.GetArrayFromImage(read_labels(_label(target)))
        scores += [
            dice(np.isin(truth, structure.values), np.isin(warped, structure.values))
            for structure in dataset.labels.structures
            if structure.name not in arguments.without
        ]
    return float(np.nanmean(scores))


def _label(scan: Scan) -> Path:
    if scan.label is None:
        raise SystemExit(f"{scan.case}: has no label")
    return scan.label


if __name__ == "__main__":
    main()
