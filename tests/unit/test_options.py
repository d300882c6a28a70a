"""What all commands make of options that they do not know."""

import configparser
import importlib
from pathlib import Path

import pytest

SETUP = configparser.ConfigParser()
SETUP.read(Path(__file__).parents[2] / "setup.cfg")
COMMANDS = dict(line.split(" = ") for line in SETUP["options.entry_points"]["console_scripts"].split("\n") if line)


def main_of(command: str):
    module, function = COMMANDS[command].split(":")
    return getattr(importlib.import_module(module), function)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_an_unknown_option_and_suggests_one(projects, command):
    answer = projects.run(main_of(command), ["--debg"])
    assert answer.code == 2
    assert "unknown option '--debg'; did you mean --debug?" in answer.err


@pytest.mark.parametrize("option", ["-step", "-fold", "-devic", "-d4"])
def test_options_of_one_dash_are_not_guessed(projects, option):
    answer = projects.run(main_of("rrlsam_predict"), ["-i", "a", "-o", "b", option, "0"])
    assert answer.code == 2
    assert f"unknown option '{option}'" in answer.err


def test_a_missing_option_is_named(projects):
    answer = projects.run(main_of("rrlsam_predict"), ["-i", "a"])
    assert answer.code == 2
    assert "required: -o" in answer.err


@pytest.mark.parametrize("name", ["2d", "3d_lowres", "3d_cascade_fullres"])
def test_other_configurations_than_3d_fullres_are_refused(projects, name):
    for command, arguments in (
        ("rrlsam_train", ["1", name, "0"]),
        ("rrlsam_predict", ["-i", "a", "-o", "b", "-c", name]),
        ("rrlsam_plan_and_preprocess", ["-d", "1", "-c", name]),
    ):
        answer = projects.run(main_of(command), arguments)
        assert answer.code == 2
        assert "one configuration only, 3d_fullres" in answer.err


@pytest.mark.parametrize("arguments", [["1", "3d_fullres", "0"], ["1", "0"]])
def test_the_configuration_may_stand_before_the_fold(projects, arguments, tmp_path):
    answer = projects.run(main_of("rrlsam_train"), [*arguments, "--raw", str(tmp_path / "nowhere")])
    assert "nowhere: the folder of raw data sets does not exist" in answer.err


def test_more_than_a_configuration_and_a_fold_are_refused(projects):
    answer = projects.run(main_of("rrlsam_train"), ["1", "3d_fullres", "0", "1"])
    assert answer.code == 2
    assert "FOLD" in answer.err


@pytest.mark.parametrize("part", [("2", "2"), ("0", "0"), ("3", "5")])
def test_a_part_beyond_the_parts_is_refused(projects, part):
    answer = projects.run(main_of("rrlsam_predict"), ["-i", "a", "-o", "b", "-num_parts", part[0], "-part_id", part[1]])
    assert answer.code == 2
