"""Which scan is the atlas, which are held out, which are learnt from without their labels."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rrlsam.dataset import Dataset
from rrlsam.errors import BadInputError, UsageError
from rrlsam.fingerprint import Fingerprint, most_central

N_FOLDS = 5
_SEED = 12345


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One way of dividing a data set."""

    name: str
    """"0" .. "4", or "all"."""
    atlases: tuple[str, ...]
    """Cases whose label training may see; of length one for now."""
    unlabelled: tuple[str, ...]
    """All other training cases, whatever lies in labelsTr."""
    validation: tuple[str, ...]
    """Held-out labelled cases, for reporting only."""

    @property
    def training(self) -> tuple[str, ...]:
        """Atlases first, then the unlabelled cases."""
        return (*self.atlases, *self.unlabelled)


def make_fold(
    dataset: Dataset,
    fingerprint: Fingerprint,
    name: str,
    *,
    atlases: tuple[str, ...] | None = None,
    splits: Path | None = None,
) -> Fold:
    """Divide a data set. `splits`: an existing splits_final.json; None: nnU-Net's own rule (5 folds, seed 12345)."""
    labelled = dataset.labelled
    if not labelled:
        raise BadInputError(f"{dataset.folder}: no scan has a label; put one label into labelsTr")
    if len(labelled) < N_FOLDS:
        few = _few_labels_fold(labelled, name)
        candidates, validation = few
    else:
        validation = _validation_cases(labelled, name, splits)
        candidates = tuple(case for case in labelled if case not in validation)
    if atlases is not None:
        atlases = _check_atlases(atlases, labelled, dataset)
        validation = tuple(case for case in validation if case not in atlases)
        if len(labelled) < N_FOLDS and name != "all":
            validation = tuple(case for case in labelled if case not in atlases)
    training = tuple(scan.case for scan in dataset.scans if scan.case not in validation)
    if atlases is None:
        atlases = (most_central(fingerprint, candidates, among=training),)
    unlabelled = tuple(case for case in training if case not in atlases)
    return Fold(name=name, atlases=atlases, unlabelled=unlabelled, validation=validation)


def kfold_splits(cases: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Validation cases of each fold: scikit-learn's KFold(5, shuffle=True, random_state=12345) over sorted names."""
    names = np.array(sorted(cases))
    order = np.arange(len(names))
    np.random.RandomState(_SEED).shuffle(order)
    return [tuple(names[np.sort(part)].tolist()) for part in np.array_split(order, N_FOLDS)]


def _few_labels_fold(labelled: tuple[str, ...], name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Candidates for the atlas and validation cases when there are one to four labels."""
    if name == "all":
        return labelled, ()
    number = _fold_number(name)
    if number >= len(labelled):
        raise UsageError(
            f"fold {name}: with {len(labelled)} labelled case(s) the folds are 0 to {len(labelled) - 1}, or all"
        )
    return (labelled[number],), tuple(case for i, case in enumerate(labelled) if i != number)


def _validation_cases(labelled: tuple[str, ...], name: str, splits: Path | None) -> tuple[str, ...]:
    if name == "all":
        return ()
    folds = kfold_splits(labelled) if splits is None else _read_splits(splits, labelled)
    number = _fold_number(name)
    if number >= len(folds):
        raise UsageError(f"fold {name}: the split has the folds 0 to {len(folds) - 1}, or all")
    return folds[number]


def _read_splits(path: Path, labelled: tuple[str, ...]) -> list[tuple[str, ...]]:
    try:
        content = json.loads(path.read_bytes())
        folds = [tuple(str(case) for case in entry["val"]) for entry in content]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(f'{path}: must be a list of {{"train": [...], "val": [...]}}') from error
    unknown = sorted({case for fold in folds for case in fold} - set(labelled))
    if unknown:
        raise BadInputError(f"{path}: validation cases without a label in the data set: {', '.join(unknown[:10])}")
    return folds


def _fold_number(name: str) -> int:
    if not name.isdigit():
        raise UsageError(f"fold {name!r}: must be a number or all")
    return int(name)


def _check_atlases(atlases: tuple[str, ...], labelled: tuple[str, ...], dataset: Dataset) -> tuple[str, ...]:
    for case in atlases:
        dataset.scan(case)
        if case not in labelled:
            raise UsageError(f"--atlas {case}: the case has no label; one of {', '.join(labelled[:10])} is needed")
    if len(atlases) != 1:
        raise UsageError(f"--atlas: exactly one atlas is supported for now, {len(atlases)} were given")
    return atlases
