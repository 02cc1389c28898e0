"""What a search of a run is asked for, refused early where it cannot be. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from mess.errors import MessError, nearest
from mess.runs.policies import ALL
from mess.runs.results import CALIBRATION
from mess.search.guarantees.confidence import require_confidence, require_max_lost
from mess.search.guarantees.methods import CROSS
from mess.search.problem.request import ACCURACY, LATENCY, Request
from mess.search.problem.settings import SETTINGS, InputDependent, find_setting
from mess.signals.registry import PAIR_SIGNALS

EXHAUSTIVE, OPTUNA = "exhaustive", "optuna"
ALGORITHMS = (EXHAUSTIVE, OPTUNA)

# From the fields, so that what is added to a `Request` need not be named here again.
_ALIKE = {field.name for field in fields(Request)} - {"max_latency_ms", "max_macs", "checkpoints"}
"""Options that a `Request` takes as they are."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The keywords of `mess.workflow.search`; those of a `Request` mean what they mean there.

    max_lost: with a confidence alone: the share of a new image's labelled pixels that the final
        exit gets right and the answer wrong, on average.
    max_latency: in ms.
    max_macs: a number, or "0.5x" of the baseline's.
    checkpoints: each "COST=MIOU", in the unit of the target; for target accuracy in that of the
        first limit, else in ms. "early=MIOU" asks an early exit for it, by no deadline.
    profile: of the latencies, by name.
    cache: the predictions to search, by name; they are refused where they are not current.
    front: without it only the answer is proven.
    fresh: an earlier search's front answers at once where it proves the answer, unless this is set.
    algorithm: "exhaustive" proves its answer; "optuna" samples what is too large for that.
    trials, sampler: of optuna alone; 2000 by default and in all, since the same call goes on with
        its study, also in several processes at once; "tpe" (the default) or "nsga2".
    policy: the signals that decide, such as "share" (the default), "ne" or "vi"; "any" is all of
        the exits' own together, and "all" is one search with each policy.
    confidence: with which the limits on accuracy are to hold on images like these, between 0.5 and
        1; without one they hold on the searched images alone.
    certify: with a confidence alone: "cross" (the default) leaves each searched image out of the
        search that it judges; else the name of a cache, of images that no search saw.
    expect: without a confidence alone: tell what images like these are expected to lose.

    Raises MessError for what cannot be read, does not go together or lacks what the target needs.
    """

    setting: str = InputDependent.name
    target: str = LATENCY
    max_error: float | None = None
    min_miou: float | None = None
    max_lost: float | None = None
    max_latency: float | None = None
    max_macs: str | float | None = None
    max_params: float | None = None
    checkpoints: Sequence[str] = ()
    latency_stat: str = "mean"
    profile: str | None = None
    cache: str = CALIBRATION
    max_exits: int = 3
    thresholds: int = 64
    front: bool = True
    fresh: bool = False
    algorithm: str = EXHAUSTIVE
    trials: int | None = None
    sampler: str | None = None
    policy: str | None = None
    shared_threshold: bool = False
    confidence: float | None = None
    certify: str = CROSS
    expect: bool = False

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise MessError(
                f"unknown algorithm {self.algorithm!r}; {nearest(self.algorithm, ALGORITHMS)}"
            )
        if self.algorithm == OPTUNA:
            self._check_optuna()
        else:
            self._check_exhaustive()
        self.request(1.0)  # what cannot be read is refused before anything is computed
        kept = (self.max_error, self.min_miou, self.max_lost)
        if self.target != ACCURACY and not (self.checkpoints or any(v is not None for v in kept)):
            raise MessError(
                f"target {self.target} without an accuracy to keep gives the cheapest exit, "
                "however bad. Give --max-error (such as 0.01) or --min-miou; or, for anytime, "
                "--checkpoint."
            )
        if self.max_lost is not None:
            self._check_lost(self.max_lost)
        self._check_certificate()
        if self.policy == ALL:
            self._check_comparison()
        elif self.policy is not None and not find_setting(self.setting).signals_decide:
            raise MessError(
                f"policy {self.policy} means nothing in the {self.setting} setting, where no image "
                "leaves by its signal; leave --policy out."
            )

    @property
    def is_timed(self) -> bool:
        """Whether nothing can be searched without latencies."""
        by_cost = any(_checkpoint(text)[0] is not None for text in self.checkpoints)
        # Without a limit that says otherwise, checkpoints of the most accurate are in ms.
        other = self.max_macs is not None or self.max_params is not None
        in_ms = self.target == ACCURACY and by_cost and not other
        return self.target == LATENCY or self.max_latency is not None or in_ms

    def request(self, baseline_macs: float) -> Request:
        """What is searched for; `max_macs` may be a multiple of `baseline_macs`."""
        return Request(
            max_latency_ms=self.max_latency,
            max_macs=_amount(self.max_macs, baseline_macs),
            checkpoints=tuple(_checkpoint(text) for text in self.checkpoints),
            **{name: getattr(self, name) for name in _ALIKE},
        )

    def _check_certificate(self) -> None:
        if self.confidence is None and self.certify != CROSS:
            raise MessError(
                f"certify {self.certify} needs a confidence: add --confidence, such as 0.95."
            )
        if self.confidence is None and not self.expect:
            return
        if self.confidence is not None:
            require_confidence(self.confidence)
        if self.confidence is not None and self.expect:
            raise MessError(
                "expect tells what is not promised, and --confidence promises it; leave one out."
            )
        if any(cost is None for cost, _ in self.request(1.0).checkpoints):
            raise MessError(
                "what an early exit delivers by no deadline is told of the searched images alone: "
                "the network run to its end, which a promise falls back to, has none. Give the "
                "checkpoint a cost, or leave --confidence and --expect out."
            )
        if self.certify == self.cache:
            raise MessError(
                f"the images of {self.cache} are searched, so they cannot certify what they chose. "
                f"Name the cache of others, or leave --certify out: {CROSS} leaves each image out "
                "of the search that it judges."
            )
        if self.algorithm != EXHAUSTIVE:
            raise MessError(
                "what holds on new images is found by repeating an exhaustive search without part "
                "of the images; leave --algorithm out."
            )

    def _check_lost(self, limit: float) -> None:
        require_max_lost(limit)
        if self.confidence is None:
            raise MessError(
                f"max_lost {limit:g} is a promise of new images, which takes a confidence: add "
                "--confidence, such as 0.95. Of the searched images alone, ask --max-error."
            )
        if find_setting(self.setting).every_exit_answers:
            raise MessError(
                f"max_lost {limit:g} is of the last answer, which in the {self.setting} setting is "
                "the final exit's own and loses nothing. Choose another --setting, or ask for what "
                "is delivered with --max-error or --checkpoint."
            )

    def _check_optuna(self) -> None:
        if not self.front:
            raise MessError(
                "--no-front means nothing to optuna, whose front is what it has sampled; leave it "
                "out."
            )
        if self.policy in PAIR_SIGNALS or self.shared_threshold:
            raise MessError(
                "optuna samples a signal and a threshold of each exit. A signal that compares "
                "exits, and a shared threshold, are searched in full and proven: leave --algorithm "
                "out."
            )

    def _check_comparison(self) -> None:
        if not find_setting(self.setting).signals_decide:
            fitting = " or ".join(s.name for s in SETTINGS.values() if s.signals_decide)
            raise MessError(f"policies decide in the {fitting} setting alone, got {self.setting}.")
        if self.algorithm != EXHAUSTIVE or self.shared_threshold:
            raise MessError(
                "--policy all searches every policy exhaustively, with thresholds of its own and "
                "with a shared one. Leave --algorithm and --shared-threshold out, or name one "
                "policy."
            )

    def _check_exhaustive(self) -> None:
        for name, value in (("trials", self.trials), ("sampler", self.sampler)):
            if value is not None:
                raise MessError(
                    f"{name} {value} means nothing to the exhaustive search, which covers its "
                    f"whole space. Add --algorithm optuna, or leave --{name} out."
                )


def _amount(value: str | float | None, baseline: float) -> float | None:
    """A number, or a multiple of the baseline written as "0.5x"."""
    if not isinstance(value, str):
        return value
    text, scale = (value[:-1], baseline) if value.endswith("x") else (value, 1.0)
    try:
        return float(text) * scale
    except ValueError:
        raise MessError(
            f"max_macs is a number or a multiple of the baseline such as 0.5x, got {value!r}."
        ) from None


def _checkpoint(text: str) -> tuple[float | None, float]:
    cost, _, miou = text.partition("=")
    try:
        return None if cost == "early" else float(cost), float(miou)
    except ValueError:
        raise MessError(
            "a checkpoint is COST=MIOU such as 5.0=0.6, or early=0.6 for an early exit without a "
            f"deadline; got {text!r}."
        ) from None
