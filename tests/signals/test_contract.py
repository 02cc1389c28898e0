"""What every signal of an exit must do; a new one joins by one line."""

from __future__ import annotations

import pytest

from mess.signals.builtin import ConfidentShare, MeanConfidence, NormalisedEntropy
from mess.signals.registry import SIGNALS
from mess.signals.signal import FULL, Signal
from mess.testing import SignalContract

EVERY: list[Signal] = [
    ConfidentShare("top1", 0.6, True),
    ConfidentShare("entropy", 0.6, False, resolution=FULL),
    MeanConfidence(),
    NormalisedEntropy(),
]


def test_the_suite_covers_every_signal() -> None:
    assert {signal.kind for signal in EVERY} == set(SIGNALS)


class TestEverySignal(SignalContract):
    @pytest.fixture(autouse=True, params=EVERY, ids=lambda signal: signal.name)
    def _each(self, request: pytest.FixtureRequest) -> None:
        self.one = request.param

    def signal(self) -> Signal:
        return self.one
