"""How failures of the system and of readers end a command."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable

import pytest

from rrlsam.cli.common import folder_name, make_parser, plain_text, run
from rrlsam.errors import BadInputError
from rrlsam.system.files import require_writable


def raising(error: Exception) -> Callable[[object], int]:
    def work(arguments: object) -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.pt"), 4, "x.pt: refused by the system (No space left"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 4, "x: refused by the system (File name too long)"),
        (OSError("strange"), 1, "internal error, OSError: strange"),
        (MemoryError("1 TB"), 4, "not enough memory (1 TB)"),
        (KeyError("a"), 1, "internal error, KeyError"),
        (TypeError("bad call\nPossible C++ prototypes:"), 1, "internal error, TypeError: bad call; run again"),
    ],
)
def test_a_failure_is_one_line(capsys, error, code, words):
    assert run(raising(error), make_parser("rrlsam_x", ""), []) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said


class Broken(io.StringIO):
    """Whose reader has gone away."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError

    def fileno(self) -> int:
        return 77


@pytest.fixture
def redirected(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Whether the broken stream's descriptor was given another end; pytest's own are left to it."""
    redirected: list[int] = []
    real = os.dup2
    monkeypatch.setattr(os, "dup2", lambda new, old, **more: redirected.append(old) if old == 77 else real(new, old))
    return redirected


def test_work_goes_on_when_nobody_listens(monkeypatch, redirected):
    done = []

    def work(arguments: object) -> int:
        sys.stdout.write("a word")
        sys.stdout.flush()
        done.append(True)
        return 0

    monkeypatch.setattr(sys, "stdout", Broken())
    assert run(work, make_parser("rrlsam_x", ""), []) == 0
    assert done == [True]
    assert redirected == [77]


def test_a_reason_that_nobody_reads_changes_no_exit_code(monkeypatch, redirected):
    monkeypatch.setattr(sys, "stderr", Broken())
    assert run(raising(MemoryError()), make_parser("rrlsam_x", ""), []) == 4
    assert redirected == [77]


def test_a_command_may_have_no_output_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)

    def work(arguments: object) -> int:
        return 0 if sys.stdout is None else 1

    assert run(work, make_parser("rrlsam_x", ""), []) == 0


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    require_writable(tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())


def saying(text: str) -> Callable[[object], int]:
    def work(arguments: object) -> int:
        sys.stdout.write(f"{text}\n")
        return 0

    return work


@pytest.mark.parametrize("buffering", [-1, 1])
def test_what_cannot_be_written_is_told_after_the_work(monkeypatch, capsys, buffering):
    with open("/dev/full", "w", buffering=buffering) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run(saying("numbers"), make_parser("rrlsam_x", ""), []) == 4
    assert capsys.readouterr().err == "rrlsam_x: what it says could not be written (No space left on device)\n"


def test_letters_that_a_terminal_does_not_know_are_spelt_out(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    assert run(saying("ü"), make_parser("rrlsam_x", ""), []) == 0
    assert buffer.getvalue() == b"\\xfc\n"


def test_a_name_cannot_steer_the_terminal(capsys):
    run(raising(BadInputError("\x1b[31mred\r.nii.gz: is bad")), make_parser("rrlsam_x", ""), [])
    assert capsys.readouterr().err == "rrlsam_x: \\x1b[31mred\\r.nii.gz: is bad\n"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", "a\nb", "x" * 201])
def test_a_name_that_leads_elsewhere_is_no_folders_name(name):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a name that a folder can have"):
        folder_name(name)


def test_an_argument_that_is_no_utf_8_is_no_plain_text():
    with pytest.raises(argparse.ArgumentTypeError, match="is not UTF-8"):
        plain_text("\udcff")
