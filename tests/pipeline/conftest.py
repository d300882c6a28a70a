"""Projects that several tests look at; they train once a session."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def trained(make_project: Callable[..., Any]) -> Any:
    """Planned, trained on folds 0 and 1 without SAM; two test scans. Not to be written to."""
    project = make_project(n_test=2)
    assert project.plan("-f", "0", "1").code == 0
    for fold in ("0", "1"):
        answer = project.train(fold, iterations=3)
        assert answer.code == 0, answer.err
    return project


@pytest.fixture(scope="session")
def rich(make_project: Callable[..., Any]) -> Any:
    """Two channels, regions and an ignore label, trained on fold 0."""
    project = make_project(n_test=1, channels=2, regions=True, ignore=True)
    assert project.plan().code == 0
    answer = project.train("0")
    assert answer.code == 0, answer.err
    return project


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these trainings do; fixtures of a session draw, and test_pictures.py."""
    monkeypatch.setattr("rrlsam.pictures.training_picture", lambda records, path: None)
