"""What rrlsam_suggest_atlas's first choice is worth as an atlas, beside scans chosen at random.

    python benchmarks/atlas_choice.py -d 4 --raw RAW --work WORK [--scans 20] [--subset 10]

Worth of an atlas: mean Dice of its label, moved as training would move it, brought to other scans by registration
without a model. Every scan is registered to every other once for that, and once as the command does it; then the choice
is made anew, as the command makes it, in many random subsets of the scans, and compared with the mean worth of the
subset's scans in that subset: what choosing at random would give. Labels are used to score, not to choose. Appends a
row to benchmarks/results/atlas_choice.md and writes WORK/DATASET.json with all worths.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from common import RESULTS, hardware, test_scans, versions
from scipy.stats import spearmanr

from rrlsam.evaluation.metrics import dice
from rrlsam.geometry import geometry_of, to_sitk
from rrlsam.planning.label_offset import find_label_offset, move_label
from rrlsam.planning.trials import correlation_after, services, trial_image, trial_pairs
from rrlsam.registration.apply import warp_labels
from rrlsam.registration.register import register_images
from rrlsam.scans.dataset import Dataset, Scan, find_dataset, load_dataset
from rrlsam.scans.volume import channels_first, read_channels, read_labels, to_canonical
from rrlsam.system.progress import rich_progress

TABLE = RESULTS / "atlas_choice.md"
HEADER = (
    "# Which scan to label, measured by benchmarks/atlas_choice.py\n\nWorth: mean Dice of a scan's label on the other "
    "scans of the subset. Rho: Spearman's correlation of the service that the command prints with the worth, over "
    "all scans; good is 1.\n\n"
    "| data | scans | subsets | worth of the first choice | of a random scan | gain | gain above 0 in | rho | notes |\n"
    "|---|---|---|---|---|---|---|---|---|\n"
)


def main() -> None:
    """Run the benchmark."""
    arguments = _parse()
    dataset = load_dataset(find_dataset(arguments.raw, arguments.d))
    labelled = [scan for scan in dataset.scans if scan.label is not None]
    labelled += test_scans(dataset) if (dataset.folder / "labelsTs").is_dir() else []
    random = np.random.default_rng(arguments.seed)
    scans = [labelled[i] for i in sorted(random.permutation(len(labelled))[: arguments.scans])]
    worth, correlations = _worths(scans, dataset, arguments)
    gains, firsts = [], []
    for _ in range(arguments.subsets):
        subset = np.sort(random.permutation(len(scans))[: arguments.subset])
        own = np.nanmean(worth[np.ix_(subset, subset)], axis=1)
        first = int(_services(correlations[np.ix_(subset, subset)]).argmax())
        firsts.append(own[first])
        gains.append(own[first] - own.mean())
    rho = spearmanr(_services(correlations), np.nanmean(worth, axis=1)).statistic
    _write(dataset, scans, worth, np.array(firsts), np.array(gains), float(rho), arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, help="number or name of the data set")
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scans", type=int, default=20, help="labelled scans, drawn at random")
    parser.add_argument("--subset", type=int, default=10, help="scans of a subset")
    parser.add_argument("--subsets", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", nargs="*", default=[], help="structures that are not scored")
    return parser.parse_args()


def _services(correlations: np.ndarray) -> np.ndarray:
    """What the command prints of scans of which it registers only some pairs."""
    known = np.full(correlations.shape, np.nan)
    for pair in trial_pairs(len(correlations)):
        known[pair] = correlations[pair]
    return services(known)


def _worths(scans: Sequence[Scan], dataset: Dataset, arguments: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Mean Dice of each scan's label (row) on each other scan (column), and the images' correlation as the command
    finds it; NaN on the diagonals."""
    worth, correlations = np.full((2, len(scans), len(scans)), np.nan)
    images = [trial_image(read_channels(scan.images), scan.case) for scan in scans]
    with rich_progress()("Registering", len(scans) * (len(scans) - 1)) as advance:
        for row, atlas in enumerate(scans):
            image, label = _atlas(atlas, dataset)
            for column, target in enumerate(scans):
                if row != column:
                    worth[row, column] = _dice(image, label, target, dataset, arguments)
                    correlations[row, column] = correlation_after(images[row], images[column])
                    advance()
    return worth, correlations


def _atlas(atlas: Scan, dataset: Dataset) -> tuple[sitk.Image, sitk.Image]:
    """The image and the label, moved as training would move it."""
    image, label = to_canonical(read_channels(atlas.images)), to_canonical(read_labels(_label(atlas)))
    values, channels = sitk.GetArrayFromImage(label).astype(np.int32), channels_first(image)
    shift = find_label_offset(values, channels, n_classes=dataset.labels.n_classes).shift_vox
    return image, to_sitk(move_label(values, shift), geometry_of(label))


def _dice(image: sitk.Image, label: sitk.Image, target: Scan, dataset: Dataset, arguments: argparse.Namespace) -> float:
    transform = register_images(read_channels(target.images), image, iterations=arguments.iterations)
    warped = sitk.GetArrayFromImage(warp_labels(label, transform))
    truth = sitk.GetArrayFromImage(read_labels(_label(target)))
    scores = [
        dice(np.isin(truth, structure.values), np.isin(warped, structure.values))
        for structure in dataset.labels.structures
        if structure.name not in arguments.without
    ]
    return float(np.nanmean(scores))


def _label(scan: Scan) -> Path:
    if scan.label is None:
        raise SystemExit(f"{scan.case}: has no label")
    return scan.label


def _write(
    dataset: Dataset,
    scans: Sequence[Scan],
    worth: np.ndarray,
    firsts: np.ndarray,
    gains: np.ndarray,
    rho: float,
    arguments: argparse.Namespace,
) -> None:
    arguments.work.mkdir(parents=True, exist_ok=True)
    run = {"cases": [scan.case for scan in scans], "worth": np.where(np.isnan(worth), None, worth).tolist()}
    (arguments.work / f"{dataset.name}.json").write_text(json.dumps(run, indent=2) + "\n")
    note = (
        f"{arguments.iterations} steps, seed {arguments.seed}; {datetime.date.today().isoformat()}, {hardware()}, "
        f"{versions()}"
    )
    row = (
        f"| {dataset.name} | {len(scans)} | {len(gains)} of {arguments.subset} | {firsts.mean():.3f} | "
        f"{(firsts - gains).mean():.3f} | {gains.mean():+.3f} (sd {gains.std():.3f}) | {(gains > 0).mean():.0%} | "
        f"{rho:.2f} | {note} |\n"
    )
    TABLE.write_text((TABLE.read_text() if TABLE.exists() else HEADER) + row)
    print(row)


if __name__ == "__main__":
    main()
