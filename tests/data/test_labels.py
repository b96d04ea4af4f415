import numpy as np
import pytest

from raylm.data.labels import classes
from raylm.errors import DataError


@pytest.mark.parametrize(
    ("values", "label", "names", "numbers"),
    [
        (["no", "yes"], [1, 0, 1], ["no", "yes"], [1, 0, 1]),
        (["b", "a", "C"], [0, 1, 2, 0], ["C", "a", "b"], [2, 1, 0, 2]),
        ([10, 9, -1], [0, 1, 2], ["-1", "9", "10"], [2, 1, 0]),
        (["unused", "x", "a"], [1, 2, 1], ["a", "x"], [1, 0, 1]),
        ([10**30, 2], [0, 1], ["2", f"{10**30}"], [1, 0]),
    ],
)
def test_classes_follow_the_order_of_the_labels(
    values: list[str | int], label: list[int], names: list[str], numbers: list[int]
) -> None:
    found, of_records = classes(values, np.array(label, np.int32))
    assert found == names
    assert of_records.tolist() == numbers


@pytest.mark.parametrize(
    ("values", "code", "part"),
    [
        (["1", 1], "data-mixed-labels", "some labels are texts ('1'), others numbers (1)"),
        (["x"], "data-one-label", "the same label ('x')"),
    ],
)
def test_labels_of_two_types_or_of_one_value_are_refused(
    values: list[str | int], code: str, part: str
) -> None:
    with pytest.raises(DataError) as caught:
        classes(values, np.arange(len(values), dtype=np.int32))
    assert caught.value.code == code
    assert part in caught.value.message
