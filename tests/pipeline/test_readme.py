"""What the documentation tells people to type must exist."""

import importlib
import re
import runpy
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from rrlsam.cli.common import Parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = (
    "apply_transform",
    "convert_dataset",
    "demo",
    "distill",
    "download_sam",
    "evaluate",
    "info",
    "jacobian",
    "predict",
    "register",
    "suggest_atlas",
    "train",
)
COMMANDS = {"plan_and_preprocess": "plan", **{name: name for name in OTHERS}}
MAKEFILE = (ROOT / "Makefile").read_text()


def code_lines(page: Path) -> list[str]:
    """Lines of fenced and indented code, without comments and continuation marks."""
    fenced, lines, pending = False, [], ""
    for line in page.read_text().splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
            continue
        if not fenced and not line.startswith("    "):
            continue
        text = re.sub(r"(^|\s)#.*", "", line).strip().removeprefix("$ ")
        if text.endswith("\\"):
            pending += text[:-1]
        elif pending + text:
            lines.append(pending + text)
            pending = ""
    return lines


def typed(program: str) -> list[tuple[str, str]]:
    """(page, line) for every line of code that calls a program."""
    found = [(page.name, line) for page in PAGES for line in code_lines(page)]
    return [(page, line) for page, line in found if re.match(rf"([A-Z_a-z]+=\S+ )*{program}", line)]


def parser_of(command: str, monkeypatch) -> Parser:
    """The parser that a command makes; the command itself does not run."""
    parsers = []
    module = importlib.import_module(f"rrlsam.cli.{COMMANDS[command]}")
    monkeypatch.setattr(module, "run", lambda work, parser, argv: parsers.append(parser) or 0)
    module.main([])
    return parsers[0]


@pytest.mark.parametrize(("page", "line"), typed("rrlsam_"))
def test_a_command_that_is_shown_can_be_typed(page, line, monkeypatch):
    command = line[line.index("rrlsam_") :]
    name, *arguments = shlex.split(re.sub(r"[\[\]]", "", command))
    assert name.removeprefix("rrlsam_") in COMMANDS, f"{page}: no command {name}"
    parser = parser_of(name.removeprefix("rrlsam_"), monkeypatch)
    known = {option for action in parser._actions for option in action.option_strings}
    given = [argument.split("=")[0] for argument in arguments if re.match(r"--?[a-zA-Z]", argument)]
    assert [option for option in given if option not in known] == [], f"{page}: {line}"


@pytest.mark.parametrize(
    "line", [line for page, line in typed("rrlsam_") if page == "README.md" and not re.search(r"[\[<]|\.\.\.", line)]
)
def test_an_example_of_the_readme_is_complete(line, monkeypatch):
    name, *arguments = shlex.split(line)
    parser_of(name.removeprefix("rrlsam_"), monkeypatch).parse_args(arguments)


@pytest.mark.parametrize(("page", "line"), typed("make "))
def test_a_make_target_that_is_shown_exists(page, line):
    for word in line.split()[1:]:
        if "=" in word:
            variable = word.split("=")[0]
            assert re.search(rf"^{variable} \?=", MAKEFILE, re.MULTILINE), f"{page}: {line}"
        else:
            assert re.search(rf"^{word}:", MAKEFILE, re.MULTILINE), f"{page}: {line}"


def test_the_readme_shows_every_step():
    shown = " ".join(line for page, line in typed("(rrlsam_|make )") if page == "README.md")
    for step in ("make demo", "make test", "rrlsam_plan_and_preprocess", "rrlsam_train", "rrlsam_predict"):
        assert step in shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_links_to_exist(page):
    links = re.findall(r"(?:\]\(|src=\")([^)\"#:\s]+)(?:#[^)]*)?[)\"]", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def python_example(what: str) -> str:
    """The example of the README in which something stands."""
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (found,) = (example for example in examples if what in example)
    return found


def test_the_python_example_of_the_readme_segments_as_the_command_does(trained, tmp_path, monkeypatch):
    source = trained.dataset / "imagesTs" / "test_00_0000.nii.gz"
    assert trained.predict(source, tmp_path / "masks").code == 0
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.model, "results/Dataset004_Mine/rrlsam/default__rrlsamPlans")
    Path("scans").mkdir()
    shutil.copy(source, "scans/b_0000.nii.gz")
    made: dict[str, Any] = {}
    exec(python_example("segment_image"), made)
    expected = sitk.ReadImage("masks/test_00.nii.gz")
    assert np.array_equal(sitk.GetArrayFromImage(made["mask"]), sitk.GetArrayFromImage(expected))
    assert made["mask"].GetOrigin() == pytest.approx(expected.GetOrigin())
    assert made["mask"].GetPixelID() == expected.GetPixelID()


def test_the_python_example_of_the_readme_warps_the_moving_scan(phantoms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = {"fixed": phantoms.phantom(3, (32, 36, 34))[0][0], "moving": phantoms.phantom(0, (34, 36, 38))[0][0]}
    for name, image in images.items():
        phantoms.write_volume(image, Path(f"{name}.nii.gz"))
    exec(python_example("register_images"), {})
    warped = sitk.GetArrayFromImage(sitk.ReadImage("warped.nii.gz"))
    assert np.corrcoef(warped.ravel(), images["fixed"].ravel())[0, 1] > 0.98  # the affine alone: 0.972


def readme_table() -> dict[str, Any]:
    """What benchmarks/readme_table.py defines."""
    return runpy.run_path(str(ROOT / "benchmarks" / "readme_table.py"))


def rows_of(data: str, *found: tuple[str, float], note: str = "5 min budget") -> str:
    """Rows as benchmarks/one_shot.py writes them, of methods and their Dice."""
    measured = f"{note}; --sam none; 2026-01-02, x86_64, 1 of 2 cores, A CPU, peak 1.0 GiB"
    return "".join(
        f"| {data} | {method} | 20 | 0.1 | {dice:.3f} | 1 | 1 | 0 | 2 | {measured} |\n" for method, dice in found
    )


def run_of(data: str, dice: float, note: str = "5 min budget") -> str:
    """The two rows of a model of ours."""
    return rows_of(data, ("rrlsam registration", dice - 0.1), ("rrlsam AP segmentation", dice), note=note)


def shown(rows: str) -> list[str]:
    """The tables' lines without their heads."""
    lines = readme_table()["table"](rows).splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith("|---")]
    return [line for i, line in enumerate(lines) if line.startswith("|") and not {i, i + 1} & set(heads)]


def test_the_tables_of_results_are_what_their_script_makes():
    script = readme_table()
    readme, rows = script["README"].read_text(), script["ROWS"].read_text()
    assert script["updated"](readme, rows) == readme
    assert len(shown(rows)) > 3


def test_every_data_set_that_was_measured_has_words():
    script = readme_table()
    assert set(re.findall(r"^\| (Dataset\S+)", script["ROWS"].read_text(), re.MULTILINE)) <= set(script["WORDS"])


def test_the_latest_run_of_each_length_and_the_best_seed_of_the_best_peer_are_shown():
    peers = [("ANTs SyN, default settings", dice) for dice in (0.3, 0.35, 0.2)] + [("demons", 0.25), ("nnU-Net", 0.7)]
    text = run_of("x", 0.5) + rows_of("x", *peers) + run_of("x", 0.6)
    line = "| x | 5 min | 0.600 | 0.500 | 0.350, ANTs SyN, best of 2 | 2026-01-02, A CPU, 1 of 2 cores |"
    assert shown(text) == [line]
    assert shown(text + text.replace("5 min", "20 min")) == [line, line.replace("5 min", "20 min")]
    assert "\nPeers: ANTs SyN, demons.\n" in readme_table()["table"](text)


def test_what_nnunet_learns_from_the_label_stands_below_the_table():
    note = "12 epochs of 50 steps on cpu, plan and train 900 s"
    row = rows_of("Dataset004_Hippocampus fold 0, atlas a", ("nnU-Net, the same label", 0.7), note=note)
    sentence = (
        f"nnU-Net, the same label, hippocampi (MSD task 4), atlas a: 0.700 ({note}; --sam none; 2026-01-02, x86_64"
    )
    assert f"\n{sentence}, 1 of 2 cores, A CPU).\n" in readme_table()["table"](run_of("x", 0.5) + row)


def test_data_sets_are_named_in_words_and_an_unknown_one_by_its_own_name_after_them():
    text = "".join(run_of(f"Dataset{name} test, atlas a", 0.5) for name in ("777_New", "335_OASIS2mmThick"))
    known, unknown = shown(text + run_of("Dataset035_OASIS2mm test, atlas a", 0.6))[:2], shown(text)[-1]
    assert [line.split(" | ")[0] for line in known] == [
        "| brains (OASIS at 2 mm)",
        "| brains in slices three times as thick",
    ]
    assert unknown.startswith("| Dataset777_New test, atlas a | 5 min |")


def test_atlases_of_one_data_set_are_told_apart_and_give_way_to_their_mean():
    data = "Dataset035_OASIS2mm test"
    single = run_of(f"{data}, atlas a", 0.5) + run_of(f"{data}, atlas b", 0.7)
    assert [line[2:].split(" | ")[0] for line in shown(single)] == [
        f"brains (OASIS at 2 mm); test, atlas {atlas}" for atlas in "ab"
    ]
    mean = run_of(f"{data}, mean of 2 atlases", 0.6, note="Dice 0.700, 0.500")
    (line,) = shown(single + mean)
    assert line.startswith("| brains (OASIS at 2 mm), mean of 2 atlases | 5 min each | 0.600 (0.500 to 0.700) |")


def test_numbers_of_labels_are_the_columns_of_a_second_table():
    curve = run_of("x 1, atlas a", 0.5) + run_of("x 1, atlas a and 1 label more", 0.6)
    first, *rest = shown(curve + run_of("x 1, atlas a and 9 labels more", 0.7) + run_of("y 1, atlas a", 0.9))
    measured = "5 min | 2026-01-02, A CPU, 1 of 2 cores |"
    assert first == "| x 1, atlas a | 5 min | 0.500 | 0.400 |  | 2026-01-02, A CPU, 1 of 2 cores |"
    assert rest[1:] == [
        f"| x 1, atlas a, segmentation | 0.500 | 0.600 | 0.700 | {measured}",
        f"| x 1, atlas a, registration | 0.400 | 0.500 | 0.600 | {measured}",
    ]
