"""Earlier results are lost only to results that stand, wherever a process ends."""

import contextlib
from pathlib import Path

import pytest

from rrlsam.system import aside
from rrlsam.system.aside import ASIDE, earlier_aside, settle_earlier

UNTIL, STAYS = "newest.pt", ".lock"
NAMES = ("final.pt", "log.txt", UNTIL, "validation/a.nii.gz")


def write(folder: Path, text: str, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def there(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path) -> Path:
    write(tmp_path, "old", *NAMES, STAYS)
    return tmp_path


ALL = dict.fromkeys((*NAMES, STAYS), "old")


def replace(folder: Path, *names: str) -> None:
    with earlier_aside(folder, until=UNTIL, stays=STAYS):
        write(folder, "new", *names)


def test_new_results_replace_all_earlier_ones(folder):
    replace(folder, "log.txt", UNTIL)
    assert there(folder) == {"log.txt": "new", UNTIL: "new", STAYS: "old"}


def test_earlier_results_come_back_if_no_new_ones_stand(folder):
    replace(folder, "log.txt")
    assert there(folder) == ALL


def test_earlier_results_come_back_after_an_error(folder):
    def interrupted() -> None:
        with earlier_aside(folder, until=UNTIL, stays=STAYS):
            assert there(folder)[STAYS] == "old"
            assert not (folder / "final.pt").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert there(folder) == ALL


@pytest.mark.parametrize("killed_at", range(8))
def test_a_killed_process_loses_nothing(folder, monkeypatch, killed_at):
    """Killed before any of the moves, four on the way out and four back."""
    moves, rename, kills = iter(range(8)), Path.rename, []

    def counted(path: Path, target: Path) -> Path:
        if next(moves) == killed_at:
            kills.append(path)
            raise SystemExit
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", counted)
    monkeypatch.setattr(aside, "settle_earlier", lambda *given, **named: None)  # as nothing runs when one is killed
    with contextlib.suppress(SystemExit):
        replace(folder)
    with contextlib.suppress(SystemExit):
        settle_earlier(folder, until=UNTIL, stays=STAYS)
    assert len(kills) == 1
    monkeypatch.undo()
    settle_earlier(folder, until=UNTIL, stays=STAYS)
    assert there(folder) == ALL
    assert not (folder / ASIDE).exists()


@pytest.mark.parametrize("killed_at", range(3))
def test_a_folder_without_the_newest_loses_nothing(folder, monkeypatch, killed_at):
    (folder / UNTIL).unlink()
    monkeypatch.setattr(aside, "settle_earlier", lambda *given, **named: None)
    replace(folder, *NAMES[:killed_at])
    monkeypatch.undo()
    settle_earlier(folder, until=UNTIL, stays=STAYS)
    assert there(folder) == {name: text for name, text in ALL.items() if name != UNTIL}
