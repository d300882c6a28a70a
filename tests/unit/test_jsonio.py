import logging

import pytest

from rrlsam.errors import BadInputError
from rrlsam.system.jsonio import (
    from_json,
    load_json,
    load_or_none,
    load_sealed,
    record,
    save_json,
    save_sealed,
    to_json,
)


@record
class Sample:
    schema: int
    sizes: tuple[int, int, int]
    names: dict[str, tuple[float, ...]]


SAMPLE = Sample(schema=1, sizes=(1, 2, 3), names={"Größe": (0.1, 1e-9)})


def test_a_record_survives_saving_and_loading(tmp_path):
    save_json(SAMPLE, tmp_path / "deep" / "sample.json")
    assert load_json(Sample, tmp_path / "deep" / "sample.json") == SAMPLE
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["sample.json"]


def test_lists_of_numbers_stand_on_one_line():
    assert '"sizes": [1, 2, 3]' in to_json(SAMPLE)
    assert "Größe" in to_json(SAMPLE)


@pytest.mark.parametrize("name", ["scan [ 1 ]", "b [  x", "[ ", " ]", "[\n 1\n ]"])
def test_names_come_back_as_they_were(name):
    sample = Sample(schema=1, sizes=(1, 2, 3), names={name: (1.0, 2.0)})
    assert from_json(Sample, to_json(sample), source="here.json") == sample


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"schema": 1, "sizes": [1, 2, 3], "names": {}, "more": 1}', "more"),
        ('{"schema": 1, "sizes": [1, 2, 3]}', "names"),
        ('{"schema": "1", "sizes": [1, 2, 3], "names": {}}', "schema"),
        ('{"schema": 1, "sizes": [1, 2], "names": {}}', r"sizes\.2"),
        ("{", "the file"),
    ],
)
def test_a_wrong_entry_is_named(text, where):
    with pytest.raises(BadInputError, match=f"here.json: {where}: "):
        from_json(Sample, text, source="here.json")


def test_a_record_refuses_infinity():
    with pytest.raises(ValueError, match="finite"):
        Sample(schema=1, sizes=(1, 2, 3), names={"a": (float("inf"),)})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadInputError, match=r"nowhere\.json: no such file"):
        load_json(Sample, tmp_path / "nowhere.json")


def test_a_damaged_stored_record_counts_as_none_and_is_reported(tmp_path, caplog):
    (tmp_path / "bad.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert load_or_none(Sample, tmp_path / "bad.json") is None
    assert "made anew" in caplog.text
    assert load_or_none(Sample, tmp_path / "absent.json") is None


def test_a_sealed_record_survives_saving_and_loading(tmp_path):
    save_sealed(SAMPLE, tmp_path / "sample.json")
    assert load_sealed(Sample, tmp_path / "sample.json") == SAMPLE


@pytest.mark.parametrize(("old", "new"), [("0.1", "0.2"), ('"sha256": "', '"sha256": "f'), ('  "sha256"', '  "sha"')])
def test_a_sealed_record_that_was_changed_is_refused(tmp_path, old, new):
    path = tmp_path / "sample.json"
    save_sealed(SAMPLE, path)
    whole = path.read_text()
    assert old in whole
    path.write_text(whole.replace(old, new))
    with pytest.raises(BadInputError, match=r"sample\.json: (damaged or edited|sha: Unexpected)"):
        load_sealed(Sample, path)


@pytest.mark.parametrize("text", ["{", "[1]", "", "[" * 100_000])
def test_a_sealed_record_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "sample.json").write_text(text)
    with pytest.raises(BadInputError, match=r"sample\.json: "):
        load_sealed(Sample, tmp_path / "sample.json")
    with pytest.raises(BadInputError, match="no such file"):
        load_sealed(Sample, tmp_path / "absent.json")
