"""An atlas as files keep it: its arrays, and a record of all else."""

from collections.abc import Mapping

from torch import Tensor

from rrlsam.data.atlas import Atlas
from rrlsam.geometry import Geometry
from rrlsam.scans.channel_stats import ChannelStats
from rrlsam.system.jsonio import record


@record
class AtlasRecord:
    """An atlas without its arrays."""

    case: str
    grid: Geometry
    foreground: tuple[ChannelStats, ...]
    alignment_geometry: Geometry


def atlas_record(atlas: Atlas) -> AtlasRecord:
    """All of an atlas but its arrays."""
    return AtlasRecord(
        case=atlas.case,
        grid=atlas.grid,
        foreground=atlas.foreground,
        alignment_geometry=atlas.alignment_geometry,
    )


def atlas_arrays(atlas: Atlas, prefix: str = "") -> dict[str, Tensor]:
    """An atlas's arrays by name, each name behind a prefix."""
    return {
        f"{prefix}image": atlas.image,
        f"{prefix}label": atlas.label,
        f"{prefix}alignment_image": atlas.alignment_image,
    }


def join_atlas(told: AtlasRecord, arrays: Mapping[str, Tensor], prefix: str = "") -> Atlas:
    """The atlas of a record and of arrays as `atlas_arrays` names them."""
    return Atlas(
        case=told.case,
        grid=told.grid,
        image=arrays[f"{prefix}image"],
        label=arrays[f"{prefix}label"],
        foreground=told.foreground,
        alignment_image=arrays[f"{prefix}alignment_image"],
        alignment_geometry=told.alignment_geometry,
    )
