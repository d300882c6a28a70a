"""What may be mended in files that are refused otherwise; only where the user asked for it."""

from rrlsam.system.jsonio import record


@record
class Repairs:
    """Off by default: a value that is not known is not guessed unasked."""

    fix_nonfinite: bool = False
    """Infinite voxels take the largest or smallest finite value of their file, NaN the smallest."""
    allow_geometry_mismatch: bool = False
    """Channels and labels that have the size of a scan's first file but lie elsewhere are laid onto it."""


NO_REPAIRS = Repairs()
