"""What holds for every setting. That its search finds the best is in `test_brute_force.py`."""

from __future__ import annotations

import json
from typing import Any, get_args

import numpy as np
import pytest

from mess.cli import options
from mess.errors import ConfigError
from mess.search.answers.answer import search
from mess.search.problem.costs import Cost, to_ticks
from mess.search.problem.goal import Goal
from mess.search.problem.request import Request
from mess.search.problem.settings import SETTINGS, Setting, find_setting
from mess.search.problem.tables import Tables
from mess.search.sampled.sample import sample
from mess.search.sampled.space import SAMPLED_SPACES
from tests.search.spaces import SPACES, space_of
from tests.seeds import seeded

Cache = tuple[Tables, dict[str, Cost]]
EVERY = pytest.mark.parametrize("setting", SETTINGS.values(), ids=list(SETTINGS))


@pytest.fixture(scope="module")
def cache(make_cache: Any) -> Any:
    return make_cache(np.random.default_rng(seeded(4)), points=4, per_point=3, images=8, signals=2)


def goal_of(cache: Cache, setting: Setting) -> Goal:
    tables, costs = cache
    asked = Request(setting=setting.name, target="macs", max_exits=3, thresholds=2)
    return Goal.of(tables, to_ticks(tables, costs), asked)


def test_every_setting_is_held_against_its_definition_and_offered() -> None:
    assert set(SPACES) == set(SETTINGS)
    assert get_args(options.Setting) == tuple(SETTINGS)
    assert all(find_setting(name) is setting for name, setting in SETTINGS.items())
    with pytest.raises(ConfigError, match=r"'anytim'.*did you mean 'anytime'"):
        find_setting("anytim")


@EVERY
def test_its_space_is_stated_and_counted(cache: Cache, setting: Setting) -> None:
    goal = goal_of(cache, setting)
    heard: list[tuple[int, int]] = []
    answer = search(*cache, goal.request, lambda *told: heard.append(told), threads=1)
    assert answer.configurations == len(space_of(goal.tables, goal.request))
    assert answer.evaluated <= answer.configurations
    assert json.loads(json.dumps(answer.space)) == answer.space
    assert answer.space["statement"] == setting.statement()
    others = [other.statement() for other in SETTINGS.values() if other is not setting]
    assert setting.statement() not in ("", *others)
    assert heard == sorted(heard)
    assert heard[-1][0] == heard[-1][1]


@EVERY
def test_configurations_are_what_it_says(cache: Cache, setting: Setting) -> None:
    goal = goal_of(cache, setting)
    space = space_of(goal.tables, goal.request)
    answering = set(setting.answering(goal.tables).tolist())
    assert {configuration[-1].exit for configuration in space} == answering
    assert not setting.ends_in_final or answering == {goal.tables.final}
    assert bool(goal.checkpoints) == setting.every_exit_answers
    early = [choice for configuration in space for choice in configuration[:-1]]
    assert {choice.signal is not None for choice in early} <= {setting.signals_decide}
    for configuration in space[:: len(space) // 20 + 1]:
        evaluation = goal.evaluate(configuration)
        delivered = len(configuration) if setting.every_exit_answers else 0
        assert len(evaluation.delivered) == len(evaluation.exit_mious) == delivered
        answers = np.asarray([choice.exit for choice in configuration])[evaluation.answer]
        assert set(answers.tolist()) <= answering
        assert len(goal.delivered(evaluation)) == len(goal.checkpoints)


@EVERY
def test_it_refuses_what_means_nothing(setting: Setting) -> None:
    asked: dict[str, Any] = {"setting": setting.name, "target": "macs", "max_error": 0.1}
    points = ((1.0, 0.5),)
    if setting.every_exit_answers:
        assert Request(**asked, checkpoints=points).checkpoints == points
    else:
        with pytest.raises(ConfigError, match=f"anytime setting, got 1 with '{setting.name}'"):
            Request(**asked, checkpoints=points)
    if setting.signals_decide:
        assert Request(**asked, shared_threshold=True).shared_threshold
    else:
        with pytest.raises(ConfigError, match=f"means nothing in the {setting.name} setting"):
            Request(**asked, shared_threshold=True)


@EVERY
def test_it_is_sampled_or_says_why_not(cache: Cache, setting: Setting) -> None:
    goal = goal_of(cache, setting)
    if setting.name not in SAMPLED_SPACES:
        with pytest.raises(ConfigError, match=f"{setting.name} setting is scanned in full at once"):
            sample(goal)
        return
    sampled = sample(goal, trials=1)
    assert sampled.configurations == len(space_of(goal.tables, goal.request))
    assert sampled.space["statement"] == setting.statement()
