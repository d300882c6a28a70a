"""What a data set's labels mean: base integers, regions made of them, and the ignore label."""

from collections.abc import Callable, Mapping

import numpy as np

from rrlsam.errors import BadInputError
from rrlsam.system.jsonio import record

LARGEST_VALUE = 65535
"""What a label file can hold: nnU-Net writes uint16 at most."""


@record
class Structure:
    """One thing that users want segmented: a label, or a region made of several."""

    name: str
    values: tuple[int, ...]
    """Base integers whose union is the structure."""


@record
class LabelScheme:
    """The labels of dataset.json. Networks know only the base integers 0 .. n_classes - 1; regions are sums of them."""

    n_classes: int
    """Base integers including background 0, without the ignore label."""
    structures: tuple[Structure, ...]
    """Foreground, in the order of dataset.json."""
    regions_class_order: tuple[int, ...] | None
    """Region-based data: the value to paint for each structure, painted in this order. None: plain labels."""
    ignore: int | None
    """Value of voxels that nobody labelled, or None."""

    @property
    def declared(self) -> tuple[int, ...]:
        """Every value a label file may hold."""
        return (*range(self.n_classes), *([self.ignore] if self.ignore is not None else []))

    def to_mask(self, probabilities: np.ndarray) -> np.ndarray:
        """Class probabilities (n_classes, ...) to label values, by argmax or by painting regions above 0.5."""
        if self.regions_class_order is None:
            return probabilities.argmax(0)
        mask = np.zeros(probabilities.shape[1:], dtype=np.int64)
        for region, value in zip(self.to_regions(probabilities), self.regions_class_order, strict=True):
            mask[region > 0.5] = value
        return mask

    def to_regions(self, probabilities: np.ndarray) -> np.ndarray:
        """Probability of each structure (n_structures, ...): the sum over its base integers."""
        return np.stack([probabilities[list(s.values)].sum(0) for s in self.structures])

    def exported(self, probabilities: np.ndarray) -> np.ndarray:
        """What nnU-Net stores as probabilities: classes with background, or regions without."""
        return probabilities if self.regions_class_order is None else self.to_regions(probabilities)


def parse_labels(entries: Mapping[str, object], regions_class_order: object, *, source: str) -> LabelScheme:
    """LabelScheme from dataset.json's `labels` and `regions_class_order`; BadInputError says what is wrong."""

    def refuse(what: str) -> BadInputError:
        return BadInputError(f"{source}: labels: {what}")

    values = {name: _as_values(name, value, refuse) for name, value in entries.items()}
    if values.get("background") != (0,):
        raise refuse('an entry "background": 0 is needed')
    ignore = None
    if "ignore" in values:
        (ignore,) = values["ignore"] if len(values["ignore"]) == 1 else (None,)
        if ignore is None:
            raise refuse('"ignore" must be a single number')
    foreground = {name: v for name, v in values.items() if name not in ("background", "ignore")}
    base = sorted({0}.union(*foreground.values()))
    if base != list(range(len(base))) or len(base) < 2:
        raise refuse(f"values must be consecutive from 0, with at least one structure; found {base}")
    if ignore is not None and ignore != len(base):
        raise refuse(f'"ignore" must be the largest value plus one ({len(base)}), not {ignore}')
    if twice := [name for name, v in foreground.items() if len(set(v)) < len(v)]:
        raise refuse(f'"{twice[0]}" names a value twice')
    if any(0 in v for v in foreground.values()):
        raise refuse("only the background is 0; leave 0 out of the structures")
    if len(set(map(frozenset, foreground.values()))) < len(foreground):
        raise refuse(f"two structures have the same values; found {str(foreground)[:200]}")
    structures = tuple(Structure(name=name, values=v) for name, v in foreground.items())
    order = _order(structures, regions_class_order, refuse)
    return LabelScheme(n_classes=len(base), structures=structures, regions_class_order=order, ignore=ignore)


def _order(
    structures: tuple[Structure, ...], given: object, refuse: Callable[[str], BadInputError]
) -> tuple[int, ...] | None:
    """What each region is painted with; None where there is none."""
    if all(len(s.values) == 1 for s in structures):
        return None
    if not isinstance(given, list) or len(given) != len(structures):
        raise refuse(f"regions need regions_class_order with {len(structures)} numbers")
    if any(type(v) is not int or not 0 <= v <= LARGEST_VALUE for v in given):
        raise refuse(f"regions_class_order must hold whole numbers, not {str(given)[:80]}")
    return tuple(given)


def _as_values(name: str, value: object, refuse: Callable[[str], BadInputError]) -> tuple[int, ...]:
    numbers = value if isinstance(value, list) else [value]
    whole = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and n >= 0]
    if not numbers or len(whole) < len(numbers):
        raise refuse(f'"{name}" must be a whole number or a list of them, not {value!r}')
    return tuple(whole)
