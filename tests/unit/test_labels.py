import numpy as np
import pytest

from rrlsam.errors import BadInputError
from rrlsam.labels import parse_labels

REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}


def test_plain_labels_become_one_structure_each():
    scheme = parse_labels({"background": 0, "a": 1, "b": 2, "ignore": 3}, None, source="x")
    assert (scheme.n_classes, scheme.ignore, scheme.declared) == (3, 3, (0, 1, 2, 3))
    assert [s.values for s in scheme.structures] == [(1,), (2,)]


def test_plain_probabilities_become_their_argmax():
    scheme = parse_labels({"background": 0, "a": 1, "b": 2}, None, source="x")
    probabilities = np.array([[0.6, 0.2, 0.1], [0.3, 0.5, 0.1], [0.1, 0.3, 0.8]])
    assert scheme.to_mask(probabilities).tolist() == [0, 1, 2]
    assert scheme.exported(probabilities) is probabilities


def test_regions_are_sums_painted_in_order():
    scheme = parse_labels(REGIONS, [1, 2, 3], source="x")
    probabilities = np.array([[0.9, 0.2, 0.1, 0.1], [0.1, 0.6, 0.2, 0.1], [0, 0.1, 0.6, 0.2], [0, 0.1, 0.1, 0.6]])
    assert np.allclose(scheme.to_regions(probabilities)[0], [0.1, 0.8, 0.9, 0.9])
    assert scheme.to_mask(probabilities).tolist() == [0, 1, 2, 3]
    assert scheme.exported(probabilities).shape == (3, 4)


@pytest.mark.parametrize(
    ("entries", "order", "message"),
    [
        ({"a": 1}, None, '"background": 0 is needed'),
        ({"background": 0}, None, "at least one structure"),
        ({"background": 0, "a": 1, "b": 3}, None, "consecutive"),
        ({"background": 0, "a": "1"}, None, "whole number"),
        ({"background": 0, "a": True}, None, "whole number"),
        ({"background": 0, "a": -1}, None, "whole number"),
        ({"background": 0, "a": 1, "ignore": 5}, None, "largest value plus one"),
        ({"background": 0, "a": 1, "ignore": [2, 3]}, None, "single number"),
        ({"background": 0, "a": [1, 1, 2], "b": 2}, [1, 2], '"a" names a value twice'),
        (REGIONS, None, "regions_class_order with 3"),
        (REGIONS, [1, 2], "regions_class_order with 3"),
    ],
)
def test_wrong_labels_are_refused(entries, order, message):
    with pytest.raises(BadInputError, match=message):
        parse_labels(entries, order, source="dataset.json")
