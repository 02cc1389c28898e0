"""What a search is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mess.errors import ConfigError, nearest
from mess.search.problem.costs import LATENCY, MACS, PARAMS
from mess.search.problem.settings import SETTINGS, InputDependent, find_setting

ACCURACY = "accuracy"
TARGETS = (LATENCY, MACS, PARAMS, ACCURACY)
LATENCY_STATS = ("mean", "p90")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A setting, what to optimise in it, and the constraints.

    target: `latency`, `macs` or `params` is minimised, `accuracy` (mIoU) is maximised.
    max_error, min_miou: the answer's mIoU reaches both `baseline - max_error` and `min_miou`.
    max_latency_ms, max_macs, max_params: upper limits on the cost; any number of them at once.
    latency_stat: what latency means in target and limit, the `mean` or the `p90` over the images.
    max_exits: exits of an instance in all, the last one included.
    thresholds: size of the threshold grid of each exit where two early exits are searched; three
        have round(thresholds ** (2 / 3)) each, and a single one every distinct threshold.
    shared_threshold: all early exits have the same signal and the same threshold (2025 paper, §V);
        it is one of a grid of `thresholds` over the values of all exits.
    checkpoints: anytime only, pairs (cost, mIoU): by that cost some exit delivers that mIoU. The
        cost is in the unit of `cost_metric`; None asks for an early exit, one before the network's
        own head, that delivers it, whenever that is (MESS paper, Table 7). Without any there is
        one at half of the baseline's cost. It asks for the mIoU that `max_error` and `min_miou` ask
        for when a cost is minimised, and for none when accuracy is maximised. Accuracy in the
        anytime setting is the mean over the checkpoints of the best mIoU delivered by then.
    """

    setting: str = InputDependent.name
    target: str = LATENCY
    max_error: float | None = None
    min_miou: float | None = None
    max_latency_ms: float | None = None
    max_macs: float | None = None
    max_params: float | None = None
    latency_stat: str = "mean"
    max_exits: int = 3
    thresholds: int = 64
    shared_threshold: bool = False
    checkpoints: tuple[tuple[float | None, float], ...] = ()

    def __post_init__(self) -> None:
        setting = find_setting(self.setting)
        _check_name("target", self.target, TARGETS)
        _check_name("latency_stat", self.latency_stat, LATENCY_STATS)
        _check_share("max_error", "an absolute mIoU drop", self.max_error)
        _check_share("min_miou", "a share", self.min_miou)
        for name in ("max_latency_ms", "max_macs", "max_params"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be a finite number above 0, got {value}")
        for name in ("max_exits", "thresholds"):
            value = getattr(self, name)
            # True is a whole number to Python.
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a whole number >= 1, got {value!r}")
        # The class is frozen, so there is no other way. Tuples give a request a hash.
        object.__setattr__(
            self,
            "checkpoints",
            tuple((None if c is None else float(c), float(m)) for c, m in self.checkpoints),
        )
        if self.shared_threshold and not setting.signals_decide:
            raise ConfigError(
                f"shared_threshold means nothing in the {self.setting} setting, where no image "
                "leaves by its signal; leave it out"
            )
        if self.checkpoints and not setting.every_exit_answers:
            fitting = " or ".join(s.name for s in SETTINGS.values() if s.every_exit_answers)
            raise ConfigError(
                f"checkpoints belong to the {fitting} setting, got {len(self.checkpoints)} with "
                f"{self.setting!r}; set setting={fitting!r} or leave them out"
            )
        for cost, miou in self.checkpoints:
            if cost is not None and not (math.isfinite(cost) and cost > 0):
                raise ConfigError(
                    f"a checkpoint's cost must be a finite number above 0, got {cost}; without a "
                    f"deadline ask for an early exit, early={miou:g}"
                )
            _check_share("a checkpoint's mIoU", "a share", miou)

    @property
    def limits(self) -> dict[str, float]:
        """Upper limits by metric, in MACs, ms and parameters."""
        limits = {LATENCY: self.max_latency_ms, MACS: self.max_macs, PARAMS: self.max_params}
        return {metric: limit for metric, limit in limits.items() if limit is not None}

    def cost_metric(self, available: Iterable[str]) -> str:
        """The metric of checkpoints and of the front.

        It is the target; for target accuracy the metric of the first limit (latency, macs, params),
        and without limits latency where it is `available`, otherwise macs.
        """
        if self.target != ACCURACY:
            return self.target
        if self.limits:
            return next(iter(self.limits))
        return LATENCY if LATENCY in available else MACS

    def constraints(self) -> dict[str, Any]:
        """The constraints that were set, and the meaning of latency, for `result.json`."""
        names = ("max_error", "min_miou", "max_latency_ms", "max_macs", "max_params")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.checkpoints:
            given["checkpoints"] = [list(checkpoint) for checkpoint in self.checkpoints]
        if self.shared_threshold:
            given["shared_threshold"] = True
        return given | {"latency_stat": self.latency_stat, "max_exits": self.max_exits}


def _check_name(kind: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"unknown {kind} {value!r}; {nearest(str(value), known)}")


def _check_share(name: str, meaning: str, value: float | None) -> None:
    if value is None or 0 <= value <= 1:
        return
    hint = f"; did you mean {value / 100:g}?" if 1 < value <= 100 else ""
    raise ConfigError(f"{name} is {meaning} in [0, 1], got {value:g}{hint}")
