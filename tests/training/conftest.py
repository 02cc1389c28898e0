"""What trainings share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import mess.training.loop
from mess.config import Config
from tests.conftest import MakeConfig
from tests.training.killing import EVERY_STEP


@pytest.fixture(scope="module")
def always_saving(make_config: MakeConfig) -> Config:
    """A checkpoint after every iteration."""
    return make_config(training=EVERY_STEP)


@pytest.fixture(autouse=True, scope="module")
def _log_every_iteration() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mess.training.loop, "_LOG_EVERY", 1)
        yield
