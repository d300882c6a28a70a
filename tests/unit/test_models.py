"""Which trained model is meant."""

from pathlib import Path

import pytest

from rrlsam.errors import UsageError
from rrlsam.models.choose import find_models, fold_folder, model_folder, read_model, select_model


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two data sets; the first has two trainers, one of them with two finished folds and one under way."""
    for dataset, model, folds in (
        ("Dataset001_Tiny", "default__rrlsamPlans", ("0", "all")),
        ("Dataset001_Tiny", "mine-Trainer__rrlsamPlans", ("0",)),
        ("Dataset011_Other", "default__coarse", ("1",)),
    ):
        for fold in folds:
            folder = tmp_path / dataset / "rrlsam" / model / f"fold_{fold}"
            folder.mkdir(parents=True)
            (folder / "checkpoint_final.pt").touch()
    unfinished = tmp_path / "Dataset001_Tiny" / "rrlsam" / "default__rrlsamPlans" / "fold_2"
    unfinished.mkdir()
    (unfinished / "checkpoint_latest.pt").touch()
    (tmp_path / "Dataset001_Tiny" / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0").mkdir(parents=True)
    return tmp_path


def test_only_finished_folds_of_ours_are_found(results):
    found = [(m.dataset, m.trainer, m.plans, m.folds) for m in find_models(results)]
    assert found == [
        ("Dataset001_Tiny", "default", "rrlsamPlans", ("0", "all")),
        ("Dataset001_Tiny", "mine-Trainer", "rrlsamPlans", ("0",)),
        ("Dataset011_Other", "default", "coarse", ("1",)),
    ]


@pytest.mark.parametrize("dataset", ["11", "011", "Dataset011_Other"])
def test_a_data_set_is_named_by_number_or_by_name(results, dataset):
    assert select_model(results, dataset=dataset).dataset == "Dataset011_Other"


def test_a_trainer_given_as_module_and_class_is_found(results):
    assert select_model(results, trainer="mine:Trainer").trainer == "mine-Trainer"


def test_plans_choose_among_models(results):
    assert select_model(results, plans="coarse").dataset == "Dataset011_Other"


def test_several_fitting_models_are_listed(results):
    with pytest.raises(UsageError, match=r"several trained models fit.*-tr default .*-tr mine-Trainer"):
        select_model(results, dataset="1")


def test_no_fitting_model_lists_what_there_is(results):
    with pytest.raises(UsageError, match=r"no trained model fits.*-d Dataset011_Other"):
        select_model(results, dataset="7")


def test_no_model_at_all_says_how_to_train_one(tmp_path):
    with pytest.raises(UsageError, match="train one with rrlsam_train"):
        select_model(tmp_path)


def test_all_finished_folds_are_used_by_default(results):
    model = select_model(results, dataset="1", trainer="default")
    assert [path.parent.name for path in model.checkpoints()] == ["fold_0", "fold_all"]


def test_an_unfinished_fold_is_refused(results):
    model = select_model(results, dataset="1", trainer="default")
    with pytest.raises(UsageError, match="fold 2 is not trained; finished folds: 0, all"):
        model.checkpoints(["0", "2"])


def test_a_folder_of_its_own_is_read_too(results, tmp_path):
    copy = tmp_path / "copied" / "default__rrlsamPlans"
    (copy / "fold_0").mkdir(parents=True)
    (copy / "fold_0" / "checkpoint_final.pt").touch()
    model = read_model(copy)
    assert model is not None
    assert (model.dataset, model.trainer, model.folds) == ("copied", "default", ("0",))


def test_a_model_is_named_wherever_one_stands(results, monkeypatch):
    folder = results / "Dataset001_Tiny" / "rrlsam" / "default__rrlsamPlans"
    monkeypatch.chdir(folder)
    model = read_model(Path())
    assert model is not None
    assert (model.dataset, model.trainer, model.plans) == ("Dataset001_Tiny", "default", "rrlsamPlans")


def test_a_folder_without_a_finished_fold_is_no_model(tmp_path):
    assert read_model(tmp_path) is None


def test_a_models_folder_holds_no_colon(tmp_path):
    assert model_folder(tmp_path, "mine:Trainer", "p").name == "mine-Trainer__p"
    assert fold_folder(tmp_path, "all").name == "fold_all"
