"""Planners and trainers are plug-ins: found by registered name (entry points) or as "module:Class"."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from rrlsam.errors import UsageError
from rrlsam.system.shortage import shortages_told

if TYPE_CHECKING:
    from rrlsam.interfaces import Planner, Trainer

PLANNERS = "rrlsam.planners"
TRAINERS = "rrlsam.trainers"


def list_plugins(group: str) -> tuple[str, ...]:
    """Registered names of a group, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=group)}))


def get_planner(name: str) -> Planner:
    """A planner by registered name or "module:Class"."""
    from rrlsam.interfaces import Planner

    return _make(PLANNERS, name, Planner)


def get_trainer(name: str) -> Trainer:
    """A trainer by registered name or "module:Class"."""
    from rrlsam.interfaces import Trainer

    return _make(TRAINERS, name, Trainer)


def _make(group: str, name: str, protocol: type):
    kind = group.rsplit(".", 1)[1].removesuffix("s")
    plugin = _imported(name, kind) if ":" in name else _registered(group, name, kind)
    if not isinstance(plugin, type):
        raise UsageError(f"{kind} {name!r}: is not a class; give module:Class")
    made = plugin()
    if not isinstance(made, protocol):
        raise UsageError(f"{kind} {name!r}: lacks a method of rrlsam.interfaces.{protocol.__name__}")
    return made


def _registered(group: str, name: str, kind: str) -> type:
    points = [point for point in entry_points(group=group) if point.name == name]
    if not points:
        known = ", ".join(list_plugins(group)) or "none"
        raise UsageError(f"no {kind} named {name!r}; known: {known}; or give module:Class")
    if len({point.value for point in points}) > 1:
        owners = ", ".join(sorted(point.dist.name if point.dist else point.value for point in points))
        raise UsageError(f"{kind} {name!r} is claimed by several packages ({owners}); give module:Class instead")
    return points[0].load()


def _imported(name: str, kind: str) -> object:
    module, _, attribute = name.partition(":")
    try:
        with shortages_told():
            return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{kind} {name!r}: cannot be imported ({error})") from error
