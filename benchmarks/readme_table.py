"""Make the README's table of results from benchmarks/results/one_shot.md.

python benchmarks/readme_table.py      # rewrites what stands between the marks in README.md
"""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
README, ROWS = HERE.parent / "README.md", HERE / "results" / "one_shot.md"
BEGIN, END = "<!-- table of benchmarks/readme_table.py -->\n", "<!-- end of table -->\n"
SEGMENTATION, REGISTRATION = "rrlsam AP segmentation", "rrlsam registration"
HEADER = (
    "| data | held out | training | rrlsam segmentation | rrlsam registration | best peer, same atlas | measured on |\n"
    "|---|---|---|---|---|---|---|\n"
)


def table(rows: str) -> str:
    """The README's table of the text of one_shot.md: of each data set, atlas and time budget the latest run.

    Of peers and their seeds the best is shown. Dice is without small structures.
    """
    runs: dict[tuple[str, str], dict[str, list[str]]] = {}
    peer: dict[str, str] = {}
    for line in rows.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 1 and cells[1] in (SEGMENTATION, REGISTRATION):
            runs.setdefault((cells[0], _budget(cells)), {})[cells[1]] = cells
        elif len(cells) > 4 and re.fullmatch(r"\d\.\d+", cells[4]) and not cells[1].startswith("nnU-Net"):
            peer[cells[0]] = max(f"{cells[4]}, {cells[1].split(',')[0]}", peer.get(cells[0], ""))
    whole = {key: run for key, run in runs.items() if SEGMENTATION in run}
    return HEADER + "".join(_line(budget, run, peer.get(data, "")) for (data, budget), run in whole.items())


def updated(readme: str, rows: str) -> str:
    """The README with the table of these rows."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + "\n" + table(rows) + "\n" + END + rest.split(END)[1]


def _budget(cells: list[str]) -> str:
    budget = re.search(r"(\d+) min budget", cells[-1])
    return f"{budget[1]} min" if budget else "as above, each"


def _line(budget: str, run: dict[str, list[str]], peer: str) -> str:
    segmentation, registration = run[SEGMENTATION], run[REGISTRATION]
    measured = re.search(r"(\d{4}-\d\d-\d\d), \w+, (.+? cores), ([^,]+)", segmentation[-1])
    if measured is None:
        raise SystemExit(f"{ROWS}: a row of {segmentation[0]} has no date or hardware")
    date, cores, processor = measured.groups()
    numbers = (segmentation[4], registration[4], peer)
    return f"| {' | '.join([segmentation[0], segmentation[2], budget, *numbers, f'{date}, {cores}, {processor}'])} |\n"


if __name__ == "__main__":
    README.write_text(updated(README.read_text(), ROWS.read_text()))
