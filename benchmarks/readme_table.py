"""Make the README's tables of results from benchmarks/results/one_shot.md.

python benchmarks/readme_table.py      # rewrites what stands between the marks in README.md
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
README, ROWS = HERE.parent / "README.md", HERE / "results" / "one_shot.md"
BEGIN, END = "<!-- table of benchmarks/readme_table.py -->\n", "<!-- end of table -->\n"
WORDS = {
    "Dataset004_Hippocampus": "hippocampi (MSD task 4)",
    "Dataset104_HippocampusNoisy": "hippocampi with bias, gamma and noise",
    "Dataset204_HippocampusThick": "hippocampi in slices three times as thick",
    "Dataset035_OASIS2mm": "brains (OASIS at 2 mm)",
    "Dataset135_OASIS2mmTurned": "brains turned, in a larger field, with bias, gamma and noise",
    "Dataset335_OASIS2mmThick": "brains in slices three times as thick",
    "Dataset435_OASIS2mmCropped": "brains with up to a quarter of each axis cut off",
    "Dataset235_OASIS2mmSmall": "brains of a mouse's size, dark where they were bright, with bias, gamma and noise",
}
"""What data sets show, in the order of the table. Others follow, under their own names."""
SEGMENTATION, REGISTRATION = "rrlsam AP segmentation", "rrlsam registration"
_DATA = re.compile(r"(?P<name>\S+) (?P<part>.+?), (atlas .+?(?: and (?P<n>\d+) labels? more)?|mean of \d+ atlases)")
_DICE = 4
"""Column of the Dice without small structures."""
NNUNET = "nnU-Net"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a model was trained with: the first cell of a row, and the time that the row's note names."""

    data: str
    name: str
    part: str
    labels: int
    """How many were learnt from."""
    minutes: str

    @property
    def mean(self) -> bool:
        """Whether figures are means over several atlases."""
        return ", mean of " in self.data

    @property
    def training(self) -> str:
        """How long a model was trained."""
        return f"{self.minutes} min{' each' if self.mean else ''}" if self.minutes else ""


Runs = dict[Setting, dict[str, list[str]]]
"""The cells of segmentation and registration by their method."""


def table(rows: str) -> str:
    """The README's tables of the text of one_shot.md: of each data set, atlas and training time the latest run.

    Of several seeds of a peer the best one counts. Where there is a mean over atlases, single atlases are left out.
    """
    runs, peers = _read(rows)
    averaged = {(s.name, s.part) for s in runs if s.mean}
    shown = [s for s in runs if s.labels == 1 and (s.mean or (s.name, s.part) not in averaged)]
    order = list(WORDS)
    shown.sort(key=lambda s: order.index(s.name) if s.name in WORDS else len(order))
    lines = [
        _line(_data(s, shown), s.training, *_scores(runs[s]), _best(peers.get(s.data, {})), _measured(runs[s]))
        for s in shown
    ]
    names = ", ".join(sorted({name for found in peers.values() for name in found}))
    head = _head("data", "training", "segmentation", "registration", "best peer", "measured on")
    return head + "".join(lines) + f"\nPeers: {names}.\n" + _supervised(rows) + _by_labels(runs)


def updated(readme: str, rows: str) -> str:
    """The README with the tables of these rows."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + "\n" + table(rows) + "\n" + END + rest.split(END)[1]


def _read(rows: str) -> tuple[Runs, dict[str, dict[str, str]]]:
    """All whole runs, and of each first cell the Dice of every peer."""
    runs: Runs = {}
    peers: dict[str, dict[str, str]] = {}
    minutes: dict[tuple[str, str], str] = {}
    for cells in _cells(rows):
        method = cells[1].split(",")[0]
        if method in (SEGMENTATION, REGISTRATION):
            setting = _setting(cells, minutes)
            minutes[setting.name, setting.part] = setting.minutes
            runs.setdefault(setting, {})[method] = cells
        elif not method.startswith(("rrlsam", NNUNET)):
            of_data = peers.setdefault(cells[0], {})
            of_data[method] = max(cells[_DICE], of_data.get(method, ""))
    return {setting: run for setting, run in runs.items() if len(run) == 2}, peers


def _setting(cells: Sequence[str], minutes: Mapping[tuple[str, str], str]) -> Setting:
    """What a row's model was trained with. A mean has no time of its own: it follows the runs that it is made of."""
    found = _DATA.fullmatch(cells[0])
    name, part, more = found.group("name", "part", "n") if found else (cells[0], "", None)
    budget = re.search(r"(\d+) min budget", cells[-1])
    known = budget[1] if budget else minutes.get((name, part), "")
    return Setting(data=cells[0], name=name, part=part, labels=1 + int(more or 0), minutes=known)


def _data(setting: Setting, shown: Sequence[Setting]) -> str:
    """The data in words; atlas and part only where they tell two rows apart."""
    if setting.name not in WORDS:
        return setting.data
    words, chosen = WORDS[setting.name], setting.data.removeprefix(setting.name).strip()
    if len({other.data for other in shown if other.name == setting.name}) > 1:
        return f"{words}; {chosen}"
    return f"{words}, {chosen.split(', ')[-1]}" if setting.mean else words


def _scores(run: Mapping[str, Sequence[str]]) -> list[str]:
    """Dice of segmentation and registration; of a mean also the smallest and the largest of the single figures."""
    found = []
    for method in (SEGMENTATION, REGISTRATION):
        cells = run[method]
        single = re.match(r"Dice ([\d., ]+);", cells[-1])
        figures = sorted(single[1].split(", ")) if single else []
        found.append(cells[_DICE] + (f" ({figures[0]} to {figures[-1]})" if figures else ""))
    return found


def _best(peers: Mapping[str, str]) -> str:
    if not peers:
        return ""
    name = max(peers, key=lambda name: peers[name])
    return f"{peers[name]}, {name}, best of {len(peers)}"


def _supervised(rows: str) -> str:
    """A sentence a row of benchmarks/nnunet.py: what the label alone teaches, without unlabelled scans."""
    text = ""
    for cells in _cells(rows):
        if cells[1].startswith(NNUNET):
            data, *learnt_from = cells[0].split(", ")
            words = ", ".join([WORDS.get(data.split()[0], data), *learnt_from])
            trained, _, measured = cells[-1].partition("; ")
            text += f"\n{cells[1]}, {words}: {cells[_DICE]} ({trained}; {measured.split(', peak')[0]}).\n"
    return text


def _cells(rows: str) -> Iterator[list[str]]:
    """The cells of every line that has figures."""
    for line in rows.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > _DICE and re.fullmatch(r"\d\.\d+", cells[_DICE]):
            yield cells


def _by_labels(runs: Runs) -> str:
    """The few-shot curves, one number of labels a column; nothing if only one label was ever learnt from."""
    curves: dict[tuple[str, str], dict[int, Setting]] = {}
    for setting in runs:
        if not setting.mean:
            atlas = setting.data.split(" and ")[0]
            curves.setdefault((atlas, setting.minutes), {})[setting.labels] = setting
    curves = {key: curve for key, curve in curves.items() if max(curve) > 1}
    if not curves:
        return ""
    numbers = sorted({n for curve in curves.values() for n in curve})
    text = "\n" + _head("labels learnt from", *map(str, numbers), "training", "measured on")
    for (atlas, _), curve in curves.items():
        latest = curve[max(curve)]
        for index, what in enumerate(("segmentation", "registration")):
            dice = [_scores(runs[curve[n]])[index] if n in curve else "" for n in numbers]
            words = WORDS.get(latest.name, atlas)
            text += _line(f"{words}, {what}", *dice, latest.training, _measured(runs[latest]))
    return text


def _measured(run: Mapping[str, Sequence[str]]) -> str:
    cells = run[SEGMENTATION]
    measured = re.search(r"(\d{4}-\d\d-\d\d), \w+, (\d+) of (\d+) cores, ([^,]+)", cells[-1])
    if measured is None:
        raise SystemExit(f"{ROWS}: a row of {cells[0]} has no date or hardware")
    date, threads, cores, processor = measured.groups()
    used = f"{threads} of {cores} cores" if threads != cores else f"{cores} core{'s' * (cores != '1')}"
    return f"{date}, {processor}, {used}"


def _head(*cells: str) -> str:
    return _line(*cells) + "|" + "---|" * len(cells) + "\n"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    README.write_text(updated(README.read_text(), ROWS.read_text()))
