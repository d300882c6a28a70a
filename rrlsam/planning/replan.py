"""When to plan anew and when to keep the plan that is there, which the user may have edited."""

import hashlib
import logging
import os
from pathlib import Path

from rrlsam.errors import BadInputError
from rrlsam.interfaces import Planner
from rrlsam.labels import LabelScheme
from rrlsam.plan import Plan, check_plan
from rrlsam.planning.fingerprint import AtlasFingerprint, Fingerprint
from rrlsam.system.files import free_name
from rrlsam.system.jsonio import load_json, read_whole, record, save_json, to_json

_log = logging.getLogger(__name__)


@record
class PlanInputs:
    """What a plan was made of."""

    inputs: str
    """SHA-256 of both fingerprints, the labels, the planner's name and the options."""
    plan: str
    """SHA-256 of plan.json as the planner wrote it: another one was edited."""


def make_plan(
    planner: Planner,
    fingerprint: Fingerprint,
    atlas: AtlasFingerprint,
    labels: LabelScheme,
    folder: Path,
    *,
    gpu_memory_target_gb: float,
    time_budget_s: float | None,
    overwrite: bool,
) -> Plan:
    """The plan in `folder`, planned anew if there is none, its inputs changed or `overwrite` says so.

    An edited plan that has to give way is kept as plan_replaced.json, a second one as plan_replaced_2.json.
    """
    name = f"{type(planner).__module__}:{type(planner).__qualname__}"
    parts = (to_json(fingerprint), to_json(atlas), to_json(labels), name, repr((gpu_memory_target_gb, time_budget_s)))
    inputs = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    path, inputs_path = folder / "plan.json", folder / "plan_inputs.json"
    known = _load_inputs(inputs_path)
    edited = path.exists() and (known is None or known.plan != _digest(path))
    if path.exists() and known is not None and known.inputs == inputs and not overwrite:
        if edited:
            _log.info("%s: edited by hand, kept", path)
        return check_plan(load_json(Plan, path), source=str(path))
    if edited:
        why = "planning anew was asked for" if overwrite else "its inputs changed"
        aside = free_name(folder / "plan_replaced.json")
        _log.warning("%s: was edited, but %s; planned anew, the old one is %s", path, why, aside.name)
        os.replace(path, aside)
    plan = planner.plan(
        fingerprint, atlas, labels, gpu_memory_target_gb=gpu_memory_target_gb, time_budget_s=time_budget_s
    )
    save_json(check_plan(plan, source=f"planner {name}"), path)
    save_json(PlanInputs(inputs=inputs, plan=_digest(path)), inputs_path)
    return plan


def _load_inputs(path: Path) -> PlanInputs | None:
    try:
        return load_json(PlanInputs, path)
    except BadInputError:
        return None


def _digest(path: Path) -> str:
    return hashlib.sha256(read_whole(path)).hexdigest()
