"""Which scan is the atlas, which are held out, which are learnt from without their labels."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rrlsam.errors import BadInputError, UsageError, listed
from rrlsam.planning.fingerprint import Fingerprint, most_central
from rrlsam.scans.dataset import Dataset, is_number
from rrlsam.system.jsonio import read_whole

N_FOLDS = 5
_SEED = 12345


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One way of dividing a data set."""

    name: str
    """"0" .. "4", or "all"."""
    atlases: tuple[str, ...]
    """Cases whose label training may see. The first is the atlas of the registration."""
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
    atlases: tuple[str, ...] = (),
    shots: int | None = None,
    splits: Path | None = None,
    best: Callable[[Sequence[str], Sequence[str]], str] | None = None,
) -> Fold:
    """Divide a data set. `splits`: an existing splits_final.json; None: nnU-Net's own rule (5 folds, seed 12345).

    `atlases`: cases whose label is to be learnt from, the registration's first; `shots`: how many in all, the others
    chosen by images alone. None: as many as are named, at least one. `best`: finds the atlas among labelled cases, with
    a look at all cases that training sees, if none is named; None: the most central one.
    """
    shots = max(1, len(atlases)) if shots is None else shots
    if len(atlases) > shots:
        raise UsageError(f"--shots {shots}: {len(atlases)} atlases are named; name fewer or give more shots")
    labelled = dataset.labelled
    if not labelled:
        raise BadInputError(f"{dataset.folder}: no scan has a label; put one label into labelsTr")
    few = len(labelled) < N_FOLDS
    if few:
        own_atlas = _atlas_of_few(labelled, name)
        atlases = atlases or own_atlas
        held_out = () if name == "all" else labelled
    else:
        held_out = _validation_cases(labelled, name, splits)
    _check_atlases(atlases, labelled, dataset)
    held_out = _without(held_out, atlases)
    candidates = labelled if few else _without(labelled, held_out)
    if shots > len(candidates):
        raise UsageError(f"--shots {shots}: fold {name} has {len(candidates)} labelled case(s) to learn from")
    seen = _without([scan.case for scan in dataset.scans], held_out)
    if best is not None and not atlases and len(candidates) > 1:
        atlases = (best(candidates, seen),)
    atlases = most_central(fingerprint, candidates, among=seen, n=shots, given=atlases)
    validation = _without(held_out, atlases)
    training = _without([scan.case for scan in dataset.scans], validation)
    return Fold(name=name, atlases=atlases, unlabelled=_without(training, atlases), validation=validation)


def _without(cases: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    return tuple(case for case in cases if case not in others)


def kfold_splits(cases: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Validation cases of each fold: scikit-learn's KFold(5, shuffle=True, random_state=12345) over sorted names."""
    names = np.array(sorted(cases))
    order = np.arange(len(names))
    np.random.RandomState(_SEED).shuffle(order)
    return [tuple(names[np.sort(part)].tolist()) for part in np.array_split(order, N_FOLDS)]


def _atlas_of_few(labelled: tuple[str, ...], name: str) -> tuple[str, ...]:
    """The atlas of a fold when there are one to four labels; none of its own for "all"."""
    if name == "all":
        return ()
    number = _fold_number(name)
    if number >= len(labelled):
        raise UsageError(
            f"fold {name}: with {len(labelled)} labelled case(s) the folds are 0 to {len(labelled) - 1}, or all"
        )
    return (labelled[number],)


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
        content = json.loads(read_whole(path))
        folds = [_cases(entry["val"]) for entry in content]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInputError(f'{path}: must be a list of {{"train": [...], "val": [...]}}') from error
    if not folds:
        raise BadInputError(f"{path}: holds no fold; list at least one, or remove the file")
    unknown = sorted({case for fold in folds for case in fold} - set(labelled))
    if unknown:
        raise BadInputError(f"{path}: validation cases without a label in the data set: {listed(unknown)}")
    return folds


def _cases(names: object) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError("no list of names")
    return tuple(names)


def _fold_number(name: str) -> int:
    if not is_number(name):
        raise UsageError(f"fold {name!r}: must be a number or all")
    return int(name)


def _check_atlases(atlases: tuple[str, ...], labelled: tuple[str, ...], dataset: Dataset) -> None:
    for case in atlases:
        dataset.scan(case)
        if case not in labelled:
            raise UsageError(f"--atlas {case}: the case has no label; one of {listed(labelled)} is needed")
    if len(set(atlases)) < len(atlases):
        raise UsageError(f"--atlas {','.join(atlases)}: a case is named twice")
