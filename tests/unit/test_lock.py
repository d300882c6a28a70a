"""Who may write in a folder, and what a second writer is told."""

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rrlsam.errors import ResourceError
from rrlsam.system.lock import LOCK, sole_writer

HOLD = """
import sys, time
from pathlib import Path
from rrlsam.system.lock import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_told_who_the_first_is(tmp_path):
    with sole_writer(tmp_path), pytest.raises(ResourceError) as caught, sole_writer(tmp_path):
        pass
    for words in (str(tmp_path), "is being written by process", socket.gethostname()):
        assert words in str(caught.value)


def test_other_folders_are_not_blocked(tmp_path):
    with sole_writer(tmp_path / "fold_0"), sole_writer(tmp_path / "fold_1"):
        assert (tmp_path / "fold_0" / LOCK).exists()
        assert (tmp_path / "fold_1" / LOCK).exists()


def test_a_finished_writer_leaves_no_lock(tmp_path):
    with sole_writer(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path):
    with pytest.raises(ValueError, match="nothing came of it"), sole_writer(tmp_path / "a" / "b"):
        raise ValueError("nothing came of it")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_written_to_stays(tmp_path):
    with sole_writer(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "result").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["result"]


def test_of_many_racers_one_writes_at_a_time(tmp_path):
    """The folder is made, locked, emptied and removed over and over by all at once."""
    inside, most, turns = [0], [0], []

    def race() -> None:
        for _ in range(10):
            with sole_writer(tmp_path / "fold", wait=True):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.0005)
                inside[0] -= 1
                turns.append(1)

    threads = [threading.Thread(target=race) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert len(turns) == 60


def test_the_lock_of_a_killed_holder_is_taken_over(tmp_path, caplog):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ResourceError, match=f"process {holder.pid} on"), sole_writer(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with caplog.at_level(logging.WARNING, logger="rrlsam"), sole_writer(tmp_path):
        assert f"process {holder.pid} on" in caplog.text
        assert "is dead, its lock is taken over" in caplog.text


def test_a_lock_that_another_machine_left_is_not_taken_over(tmp_path):
    left = {"host": "elsewhere", "pid": 1, "since": "2026-01-01T00:00:00+00:00"}
    (tmp_path / LOCK).write_text(json.dumps(left))
    told = r"was left by process 1 on elsewhere since 2026.*; delete this file"
    with pytest.raises(ResourceError, match=told), sole_writer(tmp_path):
        pass
    assert json.loads((tmp_path / LOCK).read_text()) == left


def test_a_lock_file_of_nonsense_blocks_nobody(tmp_path):
    (tmp_path / LOCK).write_bytes(b"\0\0")
    with sole_writer(tmp_path):
        assert "pid" in (tmp_path / LOCK).read_text()


def test_a_folder_that_is_removed_while_it_is_made_is_made_again(tmp_path, monkeypatch):
    """`Path.mkdir` is told that the folder exists, looks, and finds it removed by another writer: FileExistsError."""
    mkdir, calls = Path.mkdir, []

    def racing(path: Path, **settings: bool) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        mkdir(path, **settings)

    monkeypatch.setattr(Path, "mkdir", racing)
    with sole_writer(tmp_path / "fold"):
        assert (tmp_path / "fold" / LOCK).exists()


@pytest.mark.parametrize("place", ["file", "file/fold", "/proc/rrlsam/fold"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=rf"{Path(place).name}: cannot be written"), sole_writer(tmp_path / place):
        pass


def test_a_waiting_writer_says_so_and_comes_in_turn(tmp_path, caplog):
    order = []

    def second() -> None:
        with sole_writer(tmp_path, wait=True):
            order.append("second")

    with caplog.at_level(logging.INFO, logger="rrlsam"):
        with sole_writer(tmp_path):
            thread = threading.Thread(target=second)
            thread.start()
            while "waiting for it" not in caplog.text:
                time.sleep(0.01)
            order.append("first")
        thread.join()
    assert order == ["first", "second"]
