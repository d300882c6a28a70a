"""Model files: what is exported can be imported, and nothing else can."""

import dataclasses
import hashlib
import json
import os
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rrlsam.errors import BadInputError, ResourceError, UnsafeError, UsageError
from rrlsam.models.checkpoint import load_checkpoint, save_checkpoint
from rrlsam.models.choose import TrainedModel, read_model
from rrlsam.models.model_file import export_model
from rrlsam.models.model_import import import_model
from rrlsam.settings import FINAL, LATEST
from rrlsam.system import resources
from rrlsam.system.lock import sole_writer

MODEL = Path("Dataset001_Tiny") / "rrlsam" / "default__rrlsamPlans"
Members = dict[str, bytes]


@pytest.fixture
def model(make_run, tmp_path: Path) -> TrainedModel:
    """A finished fold "all" in miniature."""
    run = make_run()
    folder = tmp_path / "trained" / MODEL
    progress = dataclasses.replace(run.progress, finished=("joint", "mutual_1"))
    done = dataclasses.replace(run.checkpoint(), progress=progress)
    save_checkpoint(done, folder / "fold_all" / FINAL)
    found = read_model(folder)
    assert found is not None
    return found


@pytest.fixture
def exported(model: TrainedModel, tmp_path: Path) -> Path:
    path = tmp_path / "model.zip"
    export_model(model, None, path, licence="CC0-1.0")
    return path


@pytest.fixture
def changed(exported: Path, tmp_path: Path) -> Callable[..., Path]:
    """The exported file with its members edited; the sums are made right again unless `sums` is False."""

    def make(edit: Callable[[Members], object], *, sums: bool = True) -> Path:
        with zipfile.ZipFile(exported) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        edit(members)
        manifest = json.loads(members["manifest.json"])
        if sums:
            manifest["members"] = {
                name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
                for name, content in members.items()
                if name != "manifest.json"
            }
            members["manifest.json"] = json.dumps(manifest).encode()
        path = tmp_path / "changed.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path

    return make


def edited(name: str, **entries: object) -> Callable[[Members], object]:
    """An edit that changes entries of a JSON member."""

    def edit(members: Members) -> None:
        members[name] = json.dumps(json.loads(members[name]) | entries).encode()

    return edit


def refuse(path: Path, workspace, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        import_model(path, workspace)
    assert list(workspace.root("results").iterdir()) == []


def test_the_same_model_gives_the_same_bytes(model, exported, tmp_path):
    export_model(model, None, tmp_path / "again.zip", licence="CC0-1.0")
    assert (tmp_path / "again.zip").read_bytes() == exported.read_bytes()


def test_the_manifest_sums_up_every_other_member(exported):
    with zipfile.ZipFile(exported) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        for name in set(archive.namelist()) - {"manifest.json"}:
            assert manifest["members"][name]["sha256"] == hashlib.sha256(archive.read(name)).hexdigest()
        assert set(manifest["members"]) == set(archive.namelist()) - {"manifest.json"}
    assert manifest["licence"] == "CC0-1.0"
    assert manifest["training"]["all"]["stages"] == ["joint", "mutual_1"]


def test_an_imported_model_is_the_exported_one(model, exported, workspace):
    folder = import_model(exported, workspace).folder
    assert folder == workspace.root("results") / MODEL
    old = load_checkpoint(model.folder / "fold_all" / FINAL)
    for name in (FINAL, LATEST):
        new = load_checkpoint(folder / "fold_all" / name)
        assert (new.plan, new.provenance, new.progress.finished) == (old.plan, old.provenance, old.progress.finished)
        assert new.networks.keys() == old.networks.keys()
        assert all(torch.equal(new.networks[key], old.networks[key]) for key in old.networks)
        assert torch.equal(new.atlases[0].label, old.atlases[0].label)


def test_an_imported_checkpoint_takes_its_disk_once(exported, workspace):
    fold = import_model(exported, workspace).folder / "fold_all"
    assert os.path.samefile(fold / FINAL, fold / LATEST)


def test_where_files_cannot_be_linked_an_imported_checkpoint_is_copied(exported, workspace, monkeypatch):
    def refuse(*paths: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    fold = import_model(exported, workspace).folder / "fold_all"
    assert (fold / FINAL).read_bytes() == (fold / LATEST).read_bytes()


def test_an_imported_model_exports_to_the_same_file(exported, workspace, tmp_path):
    imported = read_model(import_model(exported, workspace).folder)
    assert imported is not None
    export_model(imported, None, tmp_path / "again.zip", licence="CC0-1.0")
    assert (tmp_path / "again.zip").read_bytes() == exported.read_bytes()


def test_a_model_that_is_there_is_not_replaced_unasked(exported, workspace):
    folder = import_model(exported, workspace).folder
    (folder / "mine.txt").touch()
    with pytest.raises(UsageError, match="--overwrite"):
        import_model(exported, workspace)
    assert (folder / "mine.txt").exists()


def test_a_model_is_replaced_on_request(exported, workspace):
    folder = import_model(exported, workspace).folder
    (folder / "mine.txt").touch()
    import_model(exported, workspace, overwrite=True)
    assert not (folder / "mine.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_model_that_is_being_trained_is_not_replaced(exported, workspace):
    folder = import_model(exported, workspace).folder
    with sole_writer(folder / "fold_all"), pytest.raises(ResourceError, match="is being written by process"):
        import_model(exported, workspace, overwrite=True)
    assert (folder / "fold_all" / FINAL).is_file()


def test_a_model_stays_if_what_should_replace_it_is_bad(exported, changed, workspace):
    folder = import_model(exported, workspace).folder
    bad = changed(lambda members: members.update({"fold_all/networks.safetensors": b"nothing"}))
    with pytest.raises(BadInputError):
        import_model(bad, workspace, overwrite=True)
    assert (folder / "fold_all" / FINAL).is_file()


def test_a_model_of_a_trainer_that_nobody_can_install_is_not_exported(make_run, tmp_path):
    run = make_run()
    run.provenance = dataclasses.replace(run.provenance, trainer="mine:Trainer")
    folder = tmp_path / "trained" / "Dataset001_Tiny" / "rrlsam" / "mine-Trainer__rrlsamPlans"
    save_checkpoint(run.checkpoint(), folder / "fold_all" / FINAL)
    found = read_model(folder)
    assert found is not None
    with pytest.raises(UsageError, match="entry point"):
        export_model(found, None, tmp_path / "model.zip", licence="")
    assert not (tmp_path / "model.zip").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../evil.json",
        "/etc/evil.json",
        "C:\\evil.json",
        "\\\\host\\evil.json",
        "fold_0/",
        "evil.pkl",
        "fold_0/x/plan.json",
    ],
)
def test_a_member_of_another_name_is_refused(changed, workspace, name):
    path = changed(lambda members: members.update({name: b"{}"}))
    refuse(path, workspace, UnsafeError, "no model file holds")


def test_links_are_refused(exported, workspace):
    link = zipfile.ZipInfo("fold_1/plan.json")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(exported, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    refuse(exported, workspace, UnsafeError, "link or a device")


def test_what_grows_beyond_measure_is_refused(exported, workspace):
    with zipfile.ZipFile(exported, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fold_1/plan.json", b"0" * 8_000_000)
    refuse(exported, workspace, UnsafeError, "grow more than 100-fold")


def test_too_many_members_are_refused(exported, workspace):
    with zipfile.ZipFile(exported, "a") as archive:
        for number in range(1001):
            archive.writestr(f"fold_{number % 1000}/plan.json" if number < 1000 else "fold_all/plan.json.", b"{}")
    refuse(exported, workspace, UnsafeError, "members, at most")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_refused(exported, workspace):
    with zipfile.ZipFile(exported, "a") as archive:
        archive.writestr("dataset.json", b"{}")
    refuse(exported, workspace, UnsafeError, "more than once")


@pytest.mark.parametrize("name", ["dataset.json", "fold_all/plan.json", "fold_all/networks.safetensors"])
def test_a_changed_member_is_refused(changed, workspace, name):
    def flip(members: Members) -> None:
        content = bytearray(members[name])
        content[-1] ^= 1
        members[name] = bytes(content)

    refuse(changed(flip, sums=False), workspace, UnsafeError, "SHA-256")


def test_a_flipped_byte_of_the_file_is_refused(exported, workspace):
    content = bytearray(exported.read_bytes())
    content[len(content) // 2] ^= 1
    exported.write_bytes(content)
    refuse(exported, workspace, UnsafeError, "corrupt or changed")


def test_a_missing_member_is_refused(changed, workspace):
    path = changed(lambda members: members.pop("fold_all/atlases.json"), sums=False)
    refuse(path, workspace, UnsafeError, "missing, superfluous")


def test_a_superfluous_member_is_refused(changed, workspace):
    path = changed(lambda members: members.update({"fold_3/plan.json": members["fold_all/plan.json"]}))
    refuse(path, workspace, UnsafeError, "missing, superfluous")


def test_a_file_that_memory_cannot_hold_is_refused(exported, workspace, monkeypatch):
    monkeypatch.setattr(resources, "usable_memory", lambda: resources.Memory(total=1 << 20, free=1 << 10))
    refuse(exported, workspace, ResourceError, "may be made to fill it")


def test_a_file_cut_short_is_bad(exported, workspace):
    exported.write_bytes(exported.read_bytes()[:-100])
    refuse(exported, workspace, BadInputError, "not a readable zip")


def test_a_newer_format_is_told_apart(changed, workspace):
    path = changed(edited("manifest.json", format=4, novelty=True))
    refuse(path, workspace, BadInputError, "format 4 is not 3.*update rrlsam")


@pytest.mark.parametrize("name", ["manifest.json", "fold_all/plan.json", "fold_all/provenance.json"])
def test_an_entry_that_could_name_code_is_refused(changed, workspace, name):
    path = changed(edited(name, network_class="subprocess.Popen"))
    refuse(path, workspace, UnsafeError, "'network_class' is none of this format")


def test_an_unknown_architecture_is_refused(changed, workspace):
    path = changed(edited("manifest.json", architecture="torch.hub.load"))
    refuse(path, workspace, UnsafeError, "architecture 'torch.hub.load' is not allowed")


@pytest.mark.parametrize("trainer", ["os:system", "subprocess.Popen", "rrlsam.trainers.one_shot:OneShotTrainer"])
@pytest.mark.parametrize("name", ["manifest.json", "fold_all/provenance.json"])
def test_a_trainer_given_as_code_is_refused(changed, workspace, name, trainer):
    refuse(changed(edited(name, trainer=trainer)), workspace, UnsafeError, "names code")


def test_a_planner_given_as_code_is_refused(changed, workspace):
    refuse(changed(edited("fold_all/plan.json", planner="os.system")), workspace, UnsafeError, "names code")


def test_a_trainer_that_is_not_installed_is_refused(changed, workspace):
    path = changed(edited("manifest.json", trainer="theirs"))
    refuse(path, workspace, UnsafeError, "trainer 'theirs' is not installed")


@pytest.mark.parametrize("entry", ["dataset", "plans"])
@pytest.mark.parametrize("value", ["../elsewhere", "a/b", "", ".hidden", "x\n", "x" * 300])
def test_a_name_that_leaves_its_folder_is_refused(changed, workspace, entry, value):
    refuse(changed(edited("manifest.json", **{entry: value})), workspace, UnsafeError, "would leave its folder")


def test_arrays_of_other_networks_are_bad(changed, workspace):
    network = {"widths": [4, 16], "strides": [[1, 1, 1], [2, 2, 2]], "kernels": [[3, 3, 3], [3, 3, 3]]}
    refuse(changed(edited("fold_all/plan.json", network=network)), workspace, BadInputError, "expected")


def test_networks_too_large_to_build_are_refused_at_once(changed, workspace):
    network = {"widths": [4, 1 << 40], "strides": [[1, 1, 1], [2, 2, 2]], "kernels": [[3, 3, 3], [3, 3, 3]]}
    refuse(changed(edited("fold_all/plan.json", network=network)), workspace, BadInputError, "network")


@pytest.mark.parametrize(
    "content",
    [b"", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 2) + b"{}", b"\x00" * 64],
    ids=["empty", "huge header", "no arrays", "zeros"],
)
def test_arrays_that_are_no_safetensors_are_bad(changed, workspace, content):
    path = changed(lambda members: members.update({"fold_all/networks.safetensors": content}))
    refuse(path, workspace, BadInputError, r"networks\.safetensors")


def test_a_description_of_other_labels_is_bad(changed, workspace):
    refuse(changed(edited("dataset.json", labels={"background": 0, "x": 1})), workspace, BadInputError, "describe")


def test_atlas_labels_that_are_not_declared_are_bad(changed, workspace):
    import safetensors.torch

    def edit(members: Members) -> None:
        arrays = safetensors.torch.load(members["fold_all/atlases.safetensors"])
        arrays["0.label"] += 7
        members["fold_all/atlases.safetensors"] = safetensors.torch.save(arrays)

    refuse(changed(edit), workspace, BadInputError, "not declared")
