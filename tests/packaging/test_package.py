"""What is installed: packages, plug-ins, and commands that answer quickly."""

import configparser
import importlib.metadata
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
COMMANDS = [line.split(" = ") for line in SETUP["options.entry_points"]["console_scripts"].split("\n") if line]
HELP = """
import importlib, sys
module, function = sys.argv.pop(1).split(":")
sys.argv[0] = "command"
try:
    getattr(importlib.import_module(module), function)(["--help"])
finally:
    heavy = {"torch", "numpy", "SimpleITK", "scipy", "matplotlib", "pydantic", "rich"} & set(sys.modules)
    print("HEAVY:", *sorted(heavy))
"""


def test_the_package_list_is_the_list_of_folders():
    inside = {f"rrlsam.{path.parent.name}" for path in (ROOT / "rrlsam").glob("*/__init__.py")}
    mapped = set(line.split(" = ")[0] for line in SETUP["options"]["package_dir"].split("\n") if line)
    listed = {line for line in SETUP["options"]["packages"].split("\n") if line}
    assert listed == {"rrlsam"} | inside | mapped


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for name in ("rrlsam", "planners", "trainers") for path in (ROOT / name).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("group", ["console_scripts", "rrlsam.planners", "rrlsam.trainers"])
def test_entry_points_can_be_loaded(group):
    ours = [point for point in importlib.metadata.entry_points(group=group) if point.value.startswith("rrlsam.")]
    assert ours
    assert all(callable(point.load()) for point in ours)


def test_the_declared_entry_points_are_the_installed_ones():
    installed = {(p.name, p.value) for p in importlib.metadata.entry_points(group="console_scripts") if p.dist}
    assert {(name, value) for name, value in COMMANDS} <= installed


@pytest.mark.parametrize("name", [name for name, _ in COMMANDS])
def test_help_is_quick_and_imports_nothing_heavy(name):
    target = dict(COMMANDS)[name]
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-P", "-c", HELP, target], capture_output=True, text=True, timeout=60)
    assert time.monotonic() - began < 2
    assert done.returncode == 0, done.stderr
    assert f"usage: {name}" in done.stdout
    assert done.stdout.rstrip().endswith("HEAVY:")


def test_type_checkers_find_our_annotations():
    assert (ROOT / "rrlsam" / "py.typed").is_file()
