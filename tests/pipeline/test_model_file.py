"""A model that travels as one file predicts what it predicted at home."""

from rrlsam.cli import export_model, import_model


def test_an_imported_model_predicts_the_same_bytes(trained, projects, tmp_path):
    path, elsewhere = tmp_path / "model.zip", tmp_path / "elsewhere"
    answer = projects.run(export_model.main, ["-d", "1", "-o", str(path), *trained.roots("results")])
    assert answer.code == 0, answer.err
    answer = projects.run(import_model.main, [str(path), "--results", str(elsewhere)])
    assert answer.code == 0, answer.err
    assert "fold 0, 1" in answer.out
    for name, roots in (("here", trained.roots("results")), ("there", ["--results", str(elsewhere)])):
        answer = trained.predict(trained.dataset / "imagesTs", tmp_path / name, *roots)
        assert answer.code == 0, answer.err
    here, there = projects.lasting_hashes(tmp_path / "here"), projects.lasting_hashes(tmp_path / "there")
    assert here == there
    assert "test_00.nii.gz" in here


def test_an_export_is_not_replaced_unasked(trained, projects, tmp_path):
    path = tmp_path / "model.zip"
    path.write_text("mine")
    arguments = ["-d", "1", "-o", str(path), *trained.roots("results")]
    assert projects.run(export_model.main, arguments).code == 2
    assert path.read_text() == "mine"
    assert projects.run(export_model.main, [*arguments, "--overwrite"]).code == 0


def test_an_import_twice_is_refused_with_code_2(trained, projects, tmp_path):
    path = tmp_path / "model.zip"
    projects.run(export_model.main, ["-d", "1", "-f", "1", "-o", str(path), *trained.roots("results")])
    codes = [projects.run(import_model.main, [str(path), "--results", str(tmp_path / "there")]).code for _ in range(2)]
    assert codes == [0, 2]


def test_a_file_that_is_no_model_is_refused_with_code_3(projects, tmp_path):
    path = tmp_path / "model.zip"
    path.write_text("not a zip")
    answer = projects.run(import_model.main, [str(path), "--results", str(tmp_path / "there")])
    assert answer.code == 3
    assert len(answer.err.splitlines()) == 1
    assert not (tmp_path / "there").exists()
