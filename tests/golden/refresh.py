"""The fingerprints whose plans are kept in plans/, and the command that writes those plans anew."""

from collections.abc import Sequence
from pathlib import Path

from rrlsam.geometry import Size3, Vector3
from rrlsam.interfaces import Planner
from rrlsam.labels import LabelScheme, Structure
from rrlsam.plan import Plan
from rrlsam.planning.fingerprint import SCHEMA, AtlasFingerprint, Fingerprint, ScanFingerprint, StructureStats
from rrlsam.registry import get_planner
from rrlsam.scans.channel_stats import ChannelStats
from rrlsam.system.jsonio import save_json

PLANS = Path(__file__).with_name("plans")
STATS = ChannelStats(
    mean=0.0, std=1.0, minimum=-3.0, percentile_00_5=-2.0, median=0.0, percentile_99_5=2.0, maximum=3.0
)


def scan(size: Size3, spacing: Vector3, *, cropped: Size3 | None = None) -> ScanFingerprint:
    """A scan's fingerprint."""
    return ScanFingerprint(
        case="a",
        content="",
        size_vox=size,
        spacing_mm=spacing,
        orientation="LPS",
        cropped_size_vox=cropped or size,
        intensity=(STATS,),
        signature="",
    )


def fingerprint_of(scans: Sequence[ScanFingerprint], *, channels: tuple[str, ...] = ("MRI",)) -> Fingerprint:
    """A data set of scans."""
    return Fingerprint(
        schema=SCHEMA, dataset="Dataset001_Golden", channel_names=channels, scans=tuple(scans), mean_distance={}
    )


def atlas_of(
    size: Size3, spacing: Vector3, start: Size3, stop: Size3, *, pairs: tuple[tuple[int, int], ...] = ()
) -> AtlasFingerprint:
    """An atlas whose structures fill one box."""
    structure = StructureStats(label=1, voxels=100, volume_mm3=100.0, box_start=start, box_stop=stop)
    return AtlasFingerprint(
        schema=SCHEMA,
        case="a",
        content="",
        size_vox=size,
        spacing_mm=spacing,
        foreground_intensity=(STATS,),
        structures=(structure,),
        left_right_pairs=pairs,
    )


def labels_of(n_classes: int) -> LabelScheme:
    """Plain labels, background included in the count."""
    structures = tuple(Structure(name=f"structure {value}", values=(value,)) for value in range(1, n_classes))
    return LabelScheme(n_classes=n_classes, structures=structures, regions_class_order=None, ignore=None)


def golden_plans() -> dict[str, Plan]:
    """What the planners make of four kinds of data, by name."""
    small, brain, heart = (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (10.0, 1.5625, 1.5625)
    abdomen = (1.0, 0.7676, 0.7676)
    hippocampus = atlas_of((35, 50, 36), small, (7, 6, 9), (28, 44, 27))
    pairs = atlas_of((80, 96, 80), brain, (12, 10, 10), (66, 86, 70), pairs=((1, 2), (3, 4)))
    liver = atlas_of((432, 512, 512), abdomen, (120, 130, 60), (330, 400, 330))
    cardiac = atlas_of((9, 237, 208), heart, (1, 90, 70), (8, 160, 140))
    ct = fingerprint_of([scan((432, 512, 512), abdomen)], channels=("CT",))
    half_empty = scan((80, 96, 80), brain, cropped=(70, 80, 62))
    default, low = get_planner("default"), get_planner("low_memory")

    def plan(planner: Planner, fingerprint: Fingerprint, atlas: AtlasFingerprint, n_classes: int) -> Plan:
        labels = labels_of(n_classes)
        return planner.plan(fingerprint, atlas, labels, gpu_memory_target_gb=8.0, time_budget_s=None)

    sizes: list[Size3] = [(35, 50, 36), (33, 48, 35), (37, 52, 38)]
    return {
        "hippocampus": plan(default, fingerprint_of([scan(size, small) for size in sizes]), hippocampus, 3),
        "brain_with_pairs": plan(default, fingerprint_of([half_empty]), pairs, 36),
        "large_ct": plan(default, ct, liver, 3),
        "large_ct_low_memory": plan(low, ct, liver, 3),
        "cardiac": plan(default, fingerprint_of([scan((9, 237, 208), heart)]), cardiac, 4),
    }


if __name__ == "__main__":
    PLANS.mkdir(exist_ok=True)
    for name, made in golden_plans().items():
        save_json(made, PLANS / f"{name}.json")
