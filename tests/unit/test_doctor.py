"""What the doctor finds, and that it finds it on a broken machine too."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rrlsam import doctor
from rrlsam.cli import doctor as command
from rrlsam.doctor import OK, WARNING, WRONG, Check, examine
from rrlsam.system.resources import usable_cores, usable_memory
from rrlsam.teacher.sam_releases import RELEASES
from rrlsam.workspace import Workspace

BROKEN_TORCH = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from rrlsam.cli.doctor import main
raise SystemExit(main([]))
"""


@pytest.fixture
def examined(workspace: Workspace, tmp_path: Path):
    """Checks by name, on a sound machine unless told otherwise."""

    def look(space: Workspace = workspace, home: Path = tmp_path) -> dict[str, Check]:
        return {check.name: check for check in examine(space, {}, home)}

    return look


def test_a_sound_machine_has_nothing_wrong(examined):
    assert [check for check in examined().values() if check.status == WRONG] == []


def test_whatever_is_not_in_order_comes_with_a_remedy(examined):
    checks = examined(Workspace(roots={"raw": None, "preprocessed": None, "results": None})).values()
    assert all(check.remedy for check in checks if check.status != OK)
    assert any(check.status == WARNING for check in checks)


def test_a_folder_that_nobody_named_is_a_warning(examined):
    check = examined(Workspace(roots={"raw": None, "preprocessed": None, "results": None}))["raw folder"]
    assert (check.status, check.found) == (WARNING, "not set")
    assert "rrlsam_raw" in check.remedy


def test_a_raw_folder_that_is_not_there_is_wrong(examined, workspace, tmp_path):
    roots = {**workspace.roots, "raw": tmp_path / "nowhere"}
    assert examined(Workspace(roots=roots))["raw folder"].status == WRONG


def test_a_results_folder_that_can_be_made_is_in_order(examined, workspace, tmp_path):
    roots = {**workspace.roots, "results": tmp_path / "to" / "come"}
    check = examined(Workspace(roots=roots))["results folder"]
    assert check.status == OK
    assert "not there yet" in check.found


def test_a_file_in_the_place_of_a_folder_is_wrong(examined, workspace, tmp_path):
    (tmp_path / "file").touch()
    roots = {**workspace.roots, "results": tmp_path / "file"}
    assert examined(Workspace(roots=roots))["results folder"].status == WRONG


def test_a_folder_that_cannot_be_written_is_wrong(examined, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: mode != doctor.os.W_OK | doctor.os.X_OK)
    check = examined()["results folder"]
    assert check.status == WRONG
    assert "not writable" in check.found


def test_a_full_disk_is_wrong(examined, monkeypatch):
    usage = doctor.shutil.disk_usage("/")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert examined()["preprocessed folder"].status == WRONG


def test_missing_weights_are_a_warning(examined):
    assert examined()["SAM weights"].status == WARNING


@pytest.mark.parametrize(("model", "problem"), [("vit_b", "has 4 bytes"), ("vit_l", "has the SHA-256")])
def test_weights_that_are_not_the_official_ones_are_wrong(examined, tmp_path, model, problem):
    """ViT-L's size is not pinned, so its sum tells."""
    folder = tmp_path / ".cache" / "rrlsam"
    folder.mkdir(parents=True)
    (folder / RELEASES[model].file).write_bytes(b"half")
    check = examined()["SAM weights"]
    assert check.status == WRONG
    assert problem in check.found
    assert model in check.remedy


def test_a_package_that_is_missing_is_wrong(examined, monkeypatch):
    monkeypatch.setitem(doctor.PACKAGES, "no-such-package-of-ours", "no_such_package")
    check = examined()["no-such-package-of-ours"]
    assert (check.status, check.found) == (WRONG, "not installed")


def test_a_broken_torch_does_not_keep_the_doctor_from_the_rest(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: no such file')")
    program = [sys.executable, "-P", "-c", BROKEN_TORCH, str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=100)
    lines = {line.split(":")[0].split(maxsplit=1)[1]: line for line in done.stdout.splitlines()}
    assert done.returncode == 4
    assert lines["torch"].startswith("wrong")
    assert "libcudart.so.12" in lines["torch"]
    assert lines["memory"].startswith("ok")
    assert "Traceback" not in done.stderr


def test_the_command_prints_json_and_its_code_is_4_if_something_is_wrong(projects, tmp_path):
    roots = ["--raw", str(tmp_path / "nowhere"), "--preprocessed", str(tmp_path), "--results", str(tmp_path)]
    answer = projects.run(command.main, ["--json", *roots])
    report = json.loads(answer.out)
    assert answer.code == 4
    assert report["wrong"] == 1
    assert {check["name"]: check["status"] for check in report["checks"]}["raw folder"] == "wrong"
    assert "raw folder" in answer.err
    assert set(report["checks"][0]) == {field.name for field in dataclasses.fields(Check)}


@pytest.fixture
def machine(tmp_path: Path):
    """A /proc and a /sys/fs/cgroup of our own making: 8 GB of memory, 6 of them free."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 8000000 kB\nMemFree: 1 kB\nMemAvailable: 6000000 kB\n")
    (proc / "self" / "cgroup").write_text("0::/outer/inner\n")
    (groups / "outer" / "inner").mkdir(parents=True)
    return proc, groups


def test_memory_without_limits_is_the_machines(machine):
    memory = usable_memory(*machine)
    assert (memory.total, memory.free) == (8000000 * 1024, 6000000 * 1024)


def test_memory_is_limited_by_an_outer_control_group(machine):
    proc, groups = machine
    (groups / "outer" / "memory.max").write_text("2000000000\n")
    (groups / "outer" / "memory.current").write_text("1500000000\n")
    (groups / "outer" / "memory.stat").write_text("anon 1\ninactive_file 300000000\n")
    (groups / "outer" / "inner" / "memory.max").write_text("max\n")
    memory = usable_memory(proc, groups)
    assert (memory.total, memory.free) == (2000000000, 800000000)


def test_cores_are_limited_by_the_tightest_quota(machine, monkeypatch):
    proc, groups = machine
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    assert usable_cores(proc, groups) == 64
    (groups / "cpu.max").write_text("max 100000\n")
    (groups / "outer" / "cpu.max").write_text("250000 100000\n")
    (groups / "outer" / "inner" / "cpu.max").write_text("800000 100000\n")
    assert usable_cores(proc, groups) == 2
    (groups / "outer" / "inner" / "cpu.max").write_text("50000 100000\n")
    assert usable_cores(proc, groups) == 1


def test_cores_are_limited_by_a_quota_of_version_1(machine, monkeypatch):
    proc, groups = machine
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    (proc / "self" / "cgroup").write_text("4:cpu,cpuacct:/job\n")
    (groups / "cpu" / "job").mkdir(parents=True)
    (groups / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (groups / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (groups / "cpu" / "job" / "cpu.cfs_quota_us").write_text("400000\n")
    (groups / "cpu" / "job" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(proc, groups) == 4


def test_memory_is_limited_by_a_control_group_of_version_1(machine):
    proc, groups = machine
    (proc / "self" / "cgroup").write_text("4:cpu,memory:/job\n")
    (groups / "memory" / "job").mkdir(parents=True)
    (groups / "memory" / "job" / "memory.limit_in_bytes").write_text("1000000000\n")
    (groups / "memory" / "job" / "memory.usage_in_bytes").write_text("100000000\n")
    memory = usable_memory(proc, groups)
    assert (memory.total, memory.free) == (1000000000, 900000000)
