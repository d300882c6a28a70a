"""What is planned is remembered as it was asked for, unless it was refused."""

import pytest

from rrlsam.errors import BadInputError
from rrlsam.planning import request
from rrlsam.planning.request import PlanningRequest, prepare_folds
from rrlsam.system.jsonio import load_json
from rrlsam.system.progress import silent


@pytest.mark.parametrize(("end", "kept"), [(KeyboardInterrupt(), True), (BadInputError("a bad scan"), False)])
def test_a_request_that_was_stopped_is_kept_and_one_that_was_refused_is_not(tiny, workspace, monkeypatch, end, kept):
    asked = []

    def stopped(dataset, folds, workspace, planner, options, **named):
        asked.append(options.gpu_memory_target_gb)
        raise end

    def prepare(wanted: PlanningRequest | None) -> None:
        with pytest.raises(type(end)):
            prepare_folds(tiny, workspace, ("0",), plans_name="plans", progress=silent, request=wanted)

    monkeypatch.setattr(request, "plan_and_preprocess", stopped)
    prepare(PlanningRequest(gpu_memory_target_gb=3.0))
    path = workspace.preprocessed(tiny.name) / "plans" / "planning.json"
    assert path.exists() == kept
    prepare(None)
    assert asked == [3.0, 3.0 if kept else PlanningRequest().gpu_memory_target_gb]
    assert not kept or load_json(PlanningRequest, path).gpu_memory_target_gb == 3.0
