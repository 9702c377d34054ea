"""The patterns: the paper's layers, depths that do not divide, and the errors' texts."""

from __future__ import annotations

import pytest

from brewer_core import RequestError
from brewer_loss_pkd.patterns import Pattern, layers


def taught_by(pattern: Pattern, student: int, teacher: int) -> list[int]:
    """The teacher's layers, for the student's layers 1, 2, ..."""
    pairs = layers(pattern, student, teacher)
    assert [own for _, own in pairs] == list(range(1, student))
    return [layer for layer, _ in pairs]


@pytest.mark.parametrize(
    ("student", "teacher", "skip", "last"),
    [
        (6, 12, [2, 4, 6, 8, 10], [7, 8, 9, 10, 11]),  # these two are the paper's
        (3, 12, [4, 8], [10, 11]),
        (4, 12, [3, 6, 9], [9, 10, 11]),
        (2, 12, [6], [11]),
        (6, 24, [4, 8, 12, 16, 20], [19, 20, 21, 22, 23]),
        (12, 24, list(range(2, 24, 2)), list(range(13, 24))),
    ],
)
def test_layers_of_the_paper(student: int, teacher: int, skip: list[int], last: list[int]) -> None:
    assert taught_by("skip", student, teacher) == skip
    assert taught_by("last", student, teacher) == last


@pytest.mark.parametrize(
    ("student", "teacher", "skip"),
    [
        (5, 12, [2, 5, 7, 10]),  # 2.4, 4.8, 7.2, 9.6
        (4, 6, [2, 3, 5]),  # 1.5, 3, 4.5: the upper of two
        (2, 3, [2]),
        (7, 8, [1, 2, 3, 5, 6, 7]),
    ],
)
def test_depths_that_do_not_divide_skip_to_the_nearest_layer(student: int, teacher: int, skip: list[int]) -> None:
    assert taught_by("skip", student, teacher) == skip


@pytest.mark.parametrize("pattern", ["skip", "last"])
def test_models_of_one_depth_are_compared_layer_by_layer(pattern: Pattern) -> None:
    assert taught_by(pattern, 5, 5) == [1, 2, 3, 4]


@pytest.mark.parametrize("pattern", ["skip", "last"])
def test_no_layer_teaches_twice_and_neither_the_embeddings_nor_the_final_layer_teach(pattern: Pattern) -> None:
    for teacher in range(2, 30):
        for student in range(2, teacher + 1):
            chosen = taught_by(pattern, student, teacher)
            assert chosen == sorted(set(chosen))
            assert 0 < chosen[0] <= chosen[-1] < teacher


@pytest.mark.parametrize("pattern", ["skip", "last"])
@pytest.mark.parametrize(
    ("student", "teacher", "text"),
    [
        (1, 12, "the student has 1 layer, and its last one is not taught by `pkd`; it needs 2 layers or more."),
        (
            6,
            5,
            "the student has 6 layers and the teacher 5; `pkd` teaches a student that is no deeper than its teacher.",
        ),
    ],
)
def test_depths_that_do_not_fit_are_refused(pattern: Pattern, student: int, teacher: int, text: str) -> None:
    with pytest.raises(RequestError) as error:
        layers(pattern, student, teacher)
    assert str(error.value) == text
