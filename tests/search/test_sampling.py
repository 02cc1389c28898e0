"""Sampling: what it finds is feasible, no worse than its start, the same again, and kept."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from mess.errors import CacheError, ConfigError
from mess.search.answers.answer import search
from mess.search.exact.one_exit import search_single
from mess.search.problem.costs import Cost, to_ticks
from mess.search.problem.definition import Choice, Configuration
from mess.search.problem.findings import Findings
from mess.search.problem.goal import Goal
from mess.search.problem.request import Request
from mess.search.problem.tables import Tables
from mess.search.sampled.sample import sample
from mess.search.sampled.space import SAMPLED_SPACES
from mess.search.sampled.study import SAMPLERS
from tests.search.spaces import space_of, tie
from tests.seeds import first_drawn, seeded

Cache = tuple[Tables, dict[str, Cost]]


def goal_of(cache: Cache, request: Request) -> Goal:
    tables, costs = cache
    return Goal.of(tables, to_ticks(tables, costs), request)


def rank_of(goal: Goal, configuration: Configuration) -> tuple[Any, ...]:
    """The tie rule, with the configuration itself in the place of its number."""
    evaluation = goal.evaluate(configuration)
    objective, accuracy, _ = goal.rank(evaluation.totals, goal.quality_steps(evaluation), 0)
    return objective, accuracy, tie(configuration)


def best_of(goal: Goal, configurations: list[Configuration]) -> Configuration | None:
    kept = [c for c in configurations if goal.meets(goal.evaluate(c))]
    return min(kept, key=lambda c: rank_of(goal, c), default=None)


def single_start(goal: Goal) -> list[Configuration]:
    """The exact answer of the space of single exits."""
    found = Findings()
    search_single(goal, found, range(goal.tables.exits))
    return [] if found.best is None else [found.best[1]]


@pytest.fixture(scope="module")
def cache(make_cache: Any) -> Any:
    """A cache whose space is far larger than the trials, and where two exits clearly beat one."""

    def draw(rng: np.random.Generator) -> Cache:
        return make_cache(rng, points=4, per_point=4, images=30, classes=4, signals=2)

    def wanted(cache: Cache) -> bool:
        one, two = (
            search(*cache, replace(REQUEST, max_exits=count, thresholds=4)) for count in (1, 2)
        )
        # A path that costs nothing is nothing to improve on.
        return two.evaluation.costs["latency"] < 0.9 * one.evaluation.costs["latency"]

    return first_drawn(5, draw, wanted)


REQUEST = Request(target="latency", max_error=0.05, max_exits=4, thresholds=16)


def requests(rng: np.random.Generator, goal: Goal, setting: str, target: str) -> Request:
    """Limits of several kinds at once, at the figures of some configuration of the space."""
    space = space_of(goal.tables, goal.request)
    near = goal.evaluate(space[int(rng.integers(len(space)))])
    limits: dict[str, Any] = {}
    if rng.random() < 0.7:
        limits["min_miou"] = near.miou
    for name, metric in (("max_latency_ms", "latency"), ("max_params", "params")):
        if rng.random() < 0.5 and near.costs[metric] > 0:
            limits[name] = near.costs[metric] * float(rng.choice([1.0, 1.2]))
    return Request(
        setting=setting,
        target=target,
        latency_stat=str(rng.choice(["mean", "p90"])),
        max_exits=goal.request.max_exits,
        thresholds=goal.request.thresholds,
        **limits,
    )


@pytest.mark.parametrize("target", ["latency", "macs", "params", "accuracy"])
@pytest.mark.parametrize("setting", SAMPLED_SPACES)
@pytest.mark.parametrize("seed", range(3))
def test_small_spaces_are_solved(make_cache: Any, seed: int, setting: str, target: str) -> None:
    """With ample trials the answer is the brute-force optimum; nothing is claimed beyond it."""
    rng = np.random.default_rng(seeded(seed))
    cache = make_cache(
        rng, points=3, per_point=2, images=4, classes=3, signals=1 + seed % 2, twins=seed == 2
    )
    wide = goal_of(cache, Request(setting=setting, target="macs", max_exits=3, thresholds=2))
    goal = goal_of(cache, requests(rng, wide, setting, target))
    everything = space_of(goal.tables, goal.request)
    sampled = sample(goal, trials=2 * len(everything), seed=seed, sampler=SAMPLERS[seed % 2])
    assert sampled.configurations == len(everything)
    best = sampled.found.best
    assert (best and best[1]) == best_of(goal, everything)
    assert best is None or goal.meets(goal.evaluate(best[1]))
    for point in sampled.found.front.points:
        evaluation = goal.evaluate(point.payload)
        assert point.payload in everything
        assert point.cost == evaluation.totals[goal.front_metric]
        assert point.miou == goal.quality_steps(evaluation)


@pytest.mark.parametrize("setting", SAMPLED_SPACES)
@pytest.mark.parametrize("signals", [0, 1, 3])
def test_the_space_is_counted(make_cache: Any, setting: str, signals: int) -> None:
    rng = np.random.default_rng(seeded(signals))
    for most in range(1, 6):
        cache = make_cache(rng, points=4, images=4, signals=signals)
        goal = goal_of(cache, Request(setting=setting, target="macs", max_exits=most, thresholds=4))
        assert sample(goal, trials=1).configurations == len(space_of(goal.tables, goal.request))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_never_worse_than_the_start(cache: Cache, sampler: str) -> None:
    goal = goal_of(cache, REQUEST)
    (start,) = single_start(goal)
    ranks = []
    for trials in (1, 60, 200):
        sampled = sample(goal, starts=[start], trials=trials, sampler=sampler)
        assert sampled.found.best is not None
        assert sampled.found.evaluated == trials
        assert goal.meets(goal.evaluate(sampled.found.best[1]))
        ranks.append(rank_of(goal, sampled.found.best[1])[:2])
    assert ranks[0] == rank_of(goal, start)[:2]
    assert ranks[2] < ranks[0]
    assert ranks == sorted(ranks, reverse=True)


def test_no_start_is_lost(cache: Cache) -> None:
    """With fewer trials than starts all of them are in answer and front."""
    goal = goal_of(cache, REQUEST)
    singles: list[Configuration] = [(Choice(exit_),) for exit_ in range(goal.tables.exits)]
    kept = [single for single in singles if goal.meets(goal.evaluate(single))]
    sampled = sample(goal, starts=singles, trials=1)
    assert sampled.found.evaluated == 1
    assert sampled.found.best is not None
    assert sampled.found.best[1] == min(kept, key=lambda c: rank_of(goal, c))
    assert len(sampled.found.front) > 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_finds_the_same(cache: Cache, sampler: str) -> None:
    goal = goal_of(cache, REQUEST)
    runs = [sample(goal, trials=60, seed=seed, sampler=sampler) for seed in (7, 7, 8)]
    fronts = [run.found.front.points for run in runs]
    assert fronts[0] == fronts[1] != fronts[2]
    assert runs[0].found.best == runs[1].found.best


def test_a_request_that_nothing_meets_has_no_answer(cache: Cache) -> None:
    goal = goal_of(cache, Request(target="latency", min_miou=1.0, max_exits=4))
    sampled = sample(goal, trials=30)
    assert sampled.found.best is None
    assert len(sampled.found.front) > 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_study_goes_on_where_it_was(cache: Cache, sampler: str, tmp_path: Path) -> None:
    goal, file = goal_of(cache, REQUEST), tmp_path / "studies" / "a.journal"
    first = sample(goal, trials=30, sampler=sampler, storage=file)
    second = sample(goal, trials=70, sampler=sampler, storage=file)
    heard: list[tuple[int, int]] = []
    third = sample(
        goal,
        trials=50,
        sampler=sampler,
        storage=file,
        progress=lambda done, total: heard.append((done, total)),
    )
    assert [run.found.evaluated for run in (first, second, third)] == [30, 70, 70]
    assert heard == [(50, 50)]
    assert first.found.best is not None
    assert second.found.best is not None
    assert second.found.best <= first.found.best
    assert third.found.best == second.found.best
    assert third.found.front.points == second.found.front.points
    assert sample(goal, trials=10, storage=file, name="other").found.evaluated == 10


def test_ctrl_c_returns_the_best_so_far(cache: Cache) -> None:
    goal = goal_of(cache, REQUEST)

    def stop(done: int, _total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    sampled = sample(goal, starts=single_start(goal), trials=50, progress=stop)
    assert sampled.found.evaluated == 7
    assert sampled.found.best is not None


def work(cache: Cache, file: Path, trials: int) -> None:
    """A process of its own."""
    sample(goal_of(cache, REQUEST), trials=trials, storage=file)


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def test_processes_share_a_study(cache: Cache, tmp_path: Path) -> None:
    file = tmp_path / "a.journal"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(cache, file, 120)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    records = [json.loads(line) for line in file.read_text().splitlines()]
    trials = [record for record in records if "params" in record]
    assert len(trials) == 120
    assert len({record["worker_id"] for record in trials}) == 2
    assert sample(goal_of(cache, REQUEST), trials=120, storage=file).found.evaluated == 120


def test_a_killed_process_blocks_nobody(cache: Cache, tmp_path: Path) -> None:
    file = tmp_path / "a.journal"
    worker = multiprocessing.get_context("spawn").Process(
        target=work, args=(cache, file, 1_000_000)
    )
    worker.start()
    while lines(file) < 20:
        time.sleep(0.01)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    finished = lines(file) - 2
    begun = time.monotonic()
    sampled = sample(goal_of(cache, REQUEST), trials=finished + 5, storage=file)
    assert sampled.found.evaluated == finished + 5
    assert time.monotonic() - begun < 10


def test_half_a_line_at_the_end_is_dropped(cache: Cache, tmp_path: Path) -> None:
    goal, file = goal_of(cache, REQUEST), tmp_path / "a.journal"
    sample(goal, trials=12, storage=file)
    content = file.read_bytes()
    file.write_bytes(content[:-20])
    assert sample(goal, trials=15, storage=file).found.evaluated == 15


def test_a_file_that_holds_something_else(cache: Cache, make_cache: Any, tmp_path: Path) -> None:
    goal, file = goal_of(cache, REQUEST), tmp_path / "a.journal"
    sample(goal, trials=5, storage=file)
    other = goal_of(make_cache(np.random.default_rng(seeded(1)), images=4), REQUEST)
    with pytest.raises(CacheError, match=r"a\.journal holds trials of another space"):
        sample(other, trials=5, storage=file)
    file.write_text("{}\nnot a study\n")
    with pytest.raises(CacheError, match=r"a\.journal is damaged. Delete it"):
        sample(goal, trials=5, storage=file)


@pytest.mark.parametrize(
    ("request_", "options", "error", "message"),
    [
        (REQUEST, {"sampler": "tpee"}, ConfigError, "'tpee'.*did you mean 'tpe'"),
        (REQUEST, {"trials": 0}, ConfigError, ">= 1, got 0"),
        (REQUEST, {"starts": [(Choice(0, 0, 9.0), Choice(1))]}, ValueError, "does not belong"),
        (REQUEST, {"starts": [(Choice(0), Choice(1))]}, ValueError, "does not belong"),
    ],
)
def test_refusals(
    cache: Cache, request_: Request, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sample(goal_of(cache, request_), **options)


def test_optuna_stays_silent(cache: Cache, capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    sample(goal_of(cache, REQUEST), trials=12)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == before
