"""Learning rates over a stage, against their formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mess.config import StageConfig, TrainingConfig, parse_config
from mess.errors import ConfigError
from mess.training.schedule import learning_rate
from mess.training.stages.optimiser import ScheduledOptimiser
from tests.conftest import MakeConfig


def rates(initial: float, *, schedule: str = "poly", **stage: float) -> list[float]:
    training = TrainingConfig.model_validate({"schedule": schedule})
    settings = StageConfig.model_validate(stage)
    steps = range(settings.iterations)
    return [learning_rate(training, settings, initial, iteration) for iteration in steps]


def test_poly_falls_by_a_power_and_never_reaches_zero() -> None:
    expected = [0.3, 0.3 * 0.75**0.9, 0.3 * 0.5**0.9, 0.3 * 0.25**0.9]
    assert rates(0.3, iterations=4) == pytest.approx(expected)


def test_cosine_falls_by_half_a_wave_and_never_reaches_zero() -> None:
    quarter = math.sqrt(0.5)
    expected = [0.3, 0.15 * (1 + quarter), 0.15, 0.15 * (1 - quarter)]
    assert rates(0.3, schedule="cosine", iterations=4) == pytest.approx(expected)


def test_a_warm_up_rises_to_the_schedule_and_leaves_the_rest_alone() -> None:
    plain, warm = rates(0.3, iterations=10), rates(0.3, iterations=10, warmup=3)
    assert warm[:3] == pytest.approx([plain[0] / 4, plain[1] / 2, 3 * plain[2] / 4])
    assert warm[3:] == plain[3:]


def test_a_warm_up_of_all_iterations_is_refused() -> None:
    with pytest.raises(ConfigError, match="warmup 5 leaves nothing of 5 iterations"):
        parse_config({"training": {"stage2": {"iterations": 5, "warmup": 5}}})


def test_a_stage_that_is_left_out_may_keep_its_warm_up() -> None:
    config = parse_config({"training": {"stage1": {"iterations": 0, "warmup": 5}}})
    assert config.training.stage1.warmup == 5


def test_a_floor_holds_for_every_rate_of_a_stage(make_config: MakeConfig) -> None:
    """The 2025 paper's: 2.5e-5 for a backbone that begins at 1e-4 and exits that begin at 5e-3."""
    floor = {"iterations": 100, "min_learning_rate": 2.5e-5, "learning_rate": 1e-4}
    expected = [1e-4, 1e-4 * 0.5**0.9, 2.5e-5]
    assert [rates(1e-4, **floor)[step] for step in (0, 50, 99)] == pytest.approx(expected)
    assert rates(5e-3, **floor)[99] == pytest.approx(5e-3 * 0.01**0.9)
    stage1 = {**floor, "exit_learning_rate": 5e-3}
    config = make_config(
        training={"scheme": "e2e", "momentum": 0.0, "weight_decay": 0.0, "stage1": stage1}
    )
    weight, other = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    groups = [([weight], 1e-4), ([other], 5e-3)]
    optimiser = ScheduledOptimiser(groups, config.training, config.training.stage1)
    for parameter in (weight, other):
        parameter.grad = torch.ones(2)
    optimiser.step(99)
    torch.testing.assert_close(weight.detach(), torch.full((2,), -2.5e-5))
    torch.testing.assert_close(other.detach(), torch.full((2,), -5e-3 * 0.01**0.9))


def test_adamw_steps_as_its_paper_says(make_config: MakeConfig) -> None:
    """Loshchilov and Hutter (2019), Algorithm 2, written out in NumPy."""
    stage1 = {"optimiser": "adamw", "iterations": 5, "learning_rate": 0.02}
    training = make_config(training={"weight_decay": 0.1, "stage1": stage1}).training
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimiser = ScheduledOptimiser([([weight], 0.02)], training, training.stage1)
    expected, mean, square = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for step in range(5):
        gradient = np.array([0.5, -0.1]) * (step - 1.5)
        weight.grad = torch.from_numpy(gradient.copy())
        optimiser.step(step)
        rate = learning_rate(training, training.stage1, 0.02, step)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        unbiased = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
        decayed = expected * (1 - rate * 0.1)
        expected = decayed - rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
        np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-12)
