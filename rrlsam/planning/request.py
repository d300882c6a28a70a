"""Planning as it was asked for: kept, so that training can prepare another fold or atlas in the same way.

A data set is prepared by one process at a time; a second one waits.
"""

from collections.abc import Sequence

from rrlsam.errors import BadInputError, UsageError
from rrlsam.planning.prepare import PreparedDataset, PrepareOptions, plan_and_preprocess
from rrlsam.registry import get_planner
from rrlsam.scans.dataset import Dataset
from rrlsam.scans.repairs import NO_REPAIRS, Repairs
from rrlsam.settings import DEFAULT_MEMORY_GB
from rrlsam.system.files import remove_left_overs
from rrlsam.system.jsonio import load_json, record, save_json
from rrlsam.system.lock import sole_writer
from rrlsam.system.progress import Progress
from rrlsam.workspace import Workspace


@record
class PlanningRequest:
    """What the user wanted planned."""

    planner: str = "default"
    """Registered name, or module:Class."""
    gpu_memory_target_gb: float = DEFAULT_MEMORY_GB
    time_budget_s: float | None = None
    repairs: Repairs = NO_REPAIRS


def prepare_folds(
    dataset: Dataset,
    workspace: Workspace,
    folds: Sequence[str],
    *,
    plans_name: str,
    progress: Progress,
    request: PlanningRequest | None = None,
    atlases: tuple[str, ...] = (),
    shots: int | None = None,
    overwrite_plan: bool = False,
    workers: int | None = None,
    fingerprint_workers: int | None = None,
    clean: bool = False,
    plan_only: bool = False,
) -> PreparedDataset:
    """Check, plan, preprocess and align; `request` None: as these plans were asked for before, else by default."""
    folder = workspace.preprocessed(dataset.name)
    path = folder / plans_name / "planning.json"
    with sole_writer(folder, wait=True):
        for place in (folder, path.parent, *folder.glob("*/atlas_*"), *folder.glob("*/cases/*")):
            remove_left_overs(place)
        wanted = request or (load_json(PlanningRequest, path) if path.exists() else PlanningRequest())
        options = PrepareOptions(
            plans_name=plans_name,
            gpu_memory_target_gb=wanted.gpu_memory_target_gb,
            time_budget_s=wanted.time_budget_s,
            overwrite_plan=overwrite_plan,
            workers=workers,
            fingerprint_workers=fingerprint_workers,
            clean=clean,
            plan_only=plan_only,
            progress=progress,
        )
        planner = get_planner(wanted.planner)
        dataset = dataset.with_repairs(wanted.repairs)
        try:
            return plan_and_preprocess(dataset, folds, workspace, planner, options, atlases=atlases, shots=shots)
        except (UsageError, BadInputError):
            wanted = None  # what was refused is not asked for again; what was stopped, or lacked room, is
            raise
        finally:
            if wanted is not None:
                save_json(wanted, path)
