import json
from dataclasses import replace

import numpy as np
import pytest

from rrlsam.errors import BadInputError, UsageError
from rrlsam.planning.extract import extract_fingerprint
from rrlsam.planning.fingerprint import Fingerprint
from rrlsam.planning.folds import kfold_splits, make_fold
from rrlsam.scans.dataset import Dataset


@pytest.fixture
def seen(tiny) -> Fingerprint:
    return extract_fingerprint(tiny, workers=1)


def _few(dataset: Dataset, labelled: int) -> Dataset:
    """The same scans with only the first labels."""
    scans = tuple(scan if i < labelled else replace(scan, label=None) for i, scan in enumerate(dataset.scans))
    return replace(dataset, scans=scans)


@pytest.mark.parametrize("n", [5, 6, 13, 100])
def test_splits_are_those_of_scikit_learn(n):
    from sklearn.model_selection import KFold

    cases = tuple(f"case_{i:03d}" for i in range(n))
    expected = KFold(5, shuffle=True, random_state=12345).split(cases)
    assert kfold_splits(cases) == [tuple(np.array(cases)[val].tolist()) for _, val in expected]


def test_a_fold_holds_every_case_once(tiny, seen):
    fold = make_fold(tiny, seen, "2")
    assert sorted((*fold.training, *fold.validation)) == [scan.case for scan in tiny.scans]
    assert len(fold.atlases) == 1
    assert fold.atlases[0] in tiny.labelled


def test_fold_all_holds_nothing_out(tiny, seen):
    fold = make_fold(tiny, seen, "all")
    assert fold.validation == ()
    assert len(fold.training) == len(tiny.scans)


def test_a_chosen_atlas_leaves_validation(tiny, seen):
    held_out = make_fold(tiny, seen, "0").validation[0]
    fold = make_fold(tiny, seen, "0", atlases=(held_out,))
    assert fold.atlases == (held_out,)
    assert held_out not in fold.validation


def test_with_few_labels_fold_k_takes_the_kth_as_atlas(tiny, seen):
    fold = make_fold(_few(tiny, 3), seen, "1")
    assert (fold.atlases, fold.validation) == (("lab_01",), ("lab_00", "lab_02"))


def test_with_few_labels_a_later_fold_is_refused(tiny, seen):
    with pytest.raises(UsageError, match="folds are 0 to 0"):
        make_fold(_few(tiny, 1), seen, "1")


@pytest.mark.parametrize("name", ["1", "first"])
def test_naming_the_atlas_of_few_labels_makes_no_fold_that_is_not_there(tiny, seen, name):
    with pytest.raises(UsageError, match=f"fold '?{name}'?"):
        make_fold(_few(tiny, 1), seen, name, atlases=("lab_00",))


def test_without_a_label_there_is_no_fold(tiny, seen):
    with pytest.raises(BadInputError, match="no scan has a label"):
        make_fold(_few(tiny, 0), seen, "0")


def test_an_existing_split_is_followed(tiny, seen, tmp_path):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": [], "val": ["lab_03"]}]))
    assert make_fold(tiny, seen, "0", splits=path).validation == ("lab_03",)
    with pytest.raises(UsageError, match="folds 0 to 0"):
        make_fold(tiny, seen, "1", splits=path)


def test_a_split_with_unknown_cases_is_refused(tiny, seen, tmp_path):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": [], "val": ["un_00"]}]))
    with pytest.raises(BadInputError, match="without a label in the data set: un_00"):
        make_fold(tiny, seen, "0", splits=path)


@pytest.mark.parametrize(
    ("atlases", "message"),
    [(("un_00",), "has no label"), (("nobody",), "no case named"), (("lab_00", "lab_00"), "named twice")],
)
def test_a_wrong_atlas_is_refused(tiny, seen, atlases, message):
    with pytest.raises(UsageError, match=message):
        make_fold(tiny, seen, "0", atlases=atlases)


def test_more_shots_begin_with_the_one_shot_atlas(tiny, seen):
    one, three = (make_fold(tiny, seen, "0", shots=n) for n in (1, 3))
    assert three.atlases[0] == one.atlases[0]
    assert len(set(three.atlases)) == 3
    assert set(three.atlases) <= set(tiny.labelled) - set(three.validation)
    assert three.validation == one.validation
    assert set(three.training) == set(one.training)


def test_named_atlases_come_first_and_are_filled_up(tiny, seen):
    assert make_fold(tiny, seen, "all", atlases=("lab_02", "lab_00")).atlases == ("lab_02", "lab_00")
    filled = make_fold(tiny, seen, "all", atlases=("lab_02",), shots=3).atlases
    assert (filled[0], len(set(filled))) == ("lab_02", 3)


@pytest.mark.parametrize(("atlases", "shots"), [((), 6), (("lab_00", "lab_01"), 1)])
def test_shots_that_do_not_fit_the_labels_are_refused(tiny, seen, atlases, shots):
    with pytest.raises(UsageError, match=f"--shots {shots}"):
        make_fold(tiny, seen, "all", atlases=atlases, shots=shots)


def test_with_few_labels_the_rest_of_the_shots_are_validated_on(tiny, seen):
    fold = make_fold(_few(tiny, 3), seen, "1", shots=2)
    assert fold.atlases[0] == "lab_01"
    assert sorted((*fold.atlases, *fold.validation)) == ["lab_00", "lab_01", "lab_02"]
    assert make_fold(_few(tiny, 3), seen, "1", shots=3).validation == ()


def test_a_fold_that_is_no_number_is_refused(tiny, seen):
    with pytest.raises(UsageError, match="must be a number or all"):
        make_fold(tiny, seen, "first")


@pytest.mark.parametrize("content", ["[]", '[{"val": {"lab_00": 1}}]', '[{"val": "lab_00"}]', '[{"val": [1]}]', "null"])
def test_a_split_that_lists_no_cases_is_refused(tiny, seen, tmp_path, content):
    (tmp_path / "splits_final.json").write_text(content)
    with pytest.raises(BadInputError, match=r"splits_final\.json"):
        make_fold(tiny, seen, "0", splits=tmp_path / "splits_final.json")


@pytest.mark.parametrize("name", ["²", "-1", "9" * 5000])
def test_a_fold_of_odd_digits_is_refused(tiny, seen, name):
    with pytest.raises(UsageError, match="must be a number or all"):
        make_fold(tiny, seen, name)
