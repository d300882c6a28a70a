"""Make the README's table of results from benchmarks/results/one_shot.md.

python benchmarks/readme_table.py      # rewrites what stands between the marks in README.md
"""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
README, ROWS = HERE.parent / "README.md", HERE / "results" / "one_shot.md"
BEGIN, END = "<!-- table of benchmarks/readme_table.py -->\n", "<!-- end of table -->\n"
SEGMENTATION, REGISTRATION, SYN = "rrlsam AP segmentation", "rrlsam registration", "ANTs SyN, default settings"
HEADER = (
    "| data | held out | training | rrlsam segmentation | rrlsam registration | ANTs SyN, same atlas | measured on |\n"
    "|---|---|---|---|---|---|---|\n"
)


def table(rows: str) -> str:
    """The README's table of the text of one_shot.md: of each data set and atlas the latest run of each method.

    Of SyN's seeds the best counts. Dice is without small structures.
    """
    found: dict[str, dict[str, list[list[str]]]] = {}
    for line in rows.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 1 and cells[1] in (SEGMENTATION, REGISTRATION, SYN):
            found.setdefault(cells[0], {}).setdefault(cells[1], []).append(cells)
    return HEADER + "".join(_line(data, methods) for data, methods in found.items() if SEGMENTATION in methods)


def updated(readme: str, rows: str) -> str:
    """The README with the table of these rows."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + "\n" + table(rows) + "\n" + END + rest.split(END)[1]


def _line(data: str, methods: dict[str, list[list[str]]]) -> str:
    last = {name: methods[name][-1] for name in (SEGMENTATION, REGISTRATION)}
    measured = re.search(r"(\d{4}-\d\d-\d\d), \w+, (.+? cores), ([^,]+)", last[SEGMENTATION][-1])
    if measured is None:
        raise SystemExit(f"{ROWS}: a row of {data} has no date or hardware")
    date, cores, processor = measured.groups()
    budget = re.search(r"(\d+) min budget", last[SEGMENTATION][-1])
    cells = [
        data,
        last[SEGMENTATION][2],
        f"{budget[1]} min" if budget else "as above, each",
        last[SEGMENTATION][4],
        last[REGISTRATION][4],
        max((cells[4] for cells in methods.get(SYN, [])), default=""),
        f"{date}, {cores}, {processor}",
    ]
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    README.write_text(updated(README.read_text(), ROWS.read_text()))
