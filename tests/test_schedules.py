"""Schedules: a warm-up in steps, then a decay over the share of the run that is done."""

import itertools

import pytest

from nerftrain.errors import UserError
from nerftrain.schedules import Constant, Cosine, Exponential, MultiStep

EVERY = [
    Constant(100, 0.01),
    MultiStep([0.5, 0.75, 0.9], 0.33, 100, 0.01),
    Exponential(0.4, 0.03, 100, 0.01),
    Cosine(0.01, 100, 0.01),
]


@pytest.mark.parametrize("schedule", EVERY, ids=lambda s: type(s).__name__)
def test_warm_up_is_linear_in_steps(schedule: Constant) -> None:
    assert schedule.factor(0, 0.0) == pytest.approx(0.01)
    assert schedule.factor(50, 0.0) == pytest.approx(0.505)
    assert schedule.factor(100, 0.0) == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", EVERY, ids=lambda s: type(s).__name__)
def test_decay_never_rises(schedule: Constant) -> None:
    factors = [schedule.factor(1000, i / 100) for i in range(101)]
    assert all(b <= a for a, b in itertools.pairwise(factors))


def test_milestones_are_shares_of_the_run() -> None:
    schedule = EVERY[1]
    factors = [schedule.factor(1000, p) for p in (0.49, 0.5, 0.76, 0.95)]
    assert factors == pytest.approx([1, 0.33, 0.33**2, 0.33**3])


def test_exponential_and_cosine_end_at_their_final_factor() -> None:
    assert EVERY[2].factor(1000, 0.4) == 1
    assert EVERY[2].factor(1000, 1.0) == pytest.approx(0.03)
    assert EVERY[3].factor(1000, 1.0) == pytest.approx(0.01)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(-1, 0.5),
        lambda: Constant(10, 0.0),
        lambda: MultiStep([1.5], 0.3, 0, 1.0),
        lambda: MultiStep([0.5], 0.0, 0, 1.0),
        lambda: MultiStep([0.5], 3.3, 0, 1.0),
        lambda: Exponential(1.0, 0.1, 0, 1.0),
        lambda: Exponential(0.0, 0.0, 0, 1.0),
        lambda: Cosine(2.0, 0, 1.0),
    ],
)
def test_impossible_schedules_are_refused(make: object) -> None:
    with pytest.raises(UserError):
        make()  # type: ignore[operator]
