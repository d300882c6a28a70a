"""What the documentation tells people to type must exist."""

import importlib
import re
import runpy
import shlex
from pathlib import Path

import pytest

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
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_table_of_results_is_what_its_script_makes():
    script = runpy.run_path(str(ROOT / "benchmarks" / "readme_table.py"))
    readme, rows = script["README"].read_text(), script["ROWS"].read_text()
    assert script["updated"](readme, rows) == readme
    assert script["table"](rows).count("\n") > 3


def test_the_latest_run_of_each_length_and_the_best_seed_of_the_best_peer_are_shown():
    table = runpy.run_path(str(ROOT / "benchmarks" / "readme_table.py"))["table"]
    rows = [("rrlsam AP segmentation", 0.5), ("rrlsam registration", 0.4), ("rrlsam AP segmentation", 0.6)]
    rows += [("ANTs SyN, default settings", dice) for dice in (0.3, 0.35, 0.2)] + [("demons", 0.25), ("nnU-Net", 0.7)]
    note = "5 min budget; 2026-01-02, x86_64, 1 of 2 cores, A CPU, peak"
    text = "\n".join(f"| x | {method} | 20 | 0.1 | {dice:.3f} | 1 | 1 | 0 | 2 | {note} |" for method, dice in rows)
    line = "| x | 20 | 5 min | 0.600 | 0.400 | 0.350, ANTs SyN | 2026-01-02, 1 of 2 cores, A CPU |"
    assert table(text).splitlines()[2:] == [line]
    longer = text + "\n" + text.replace("5 min", "20 min")
    assert table(longer).splitlines()[2:] == [line, line.replace("5 min", "20 min")]
