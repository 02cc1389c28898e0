"""Contracts that parts of your own can be held to, as the built-in ones are.

Subclass one in a test file and say how the part is made; pytest finds its tests. They are plain
asserts: mess itself does not need pytest.

May import: config, data, export, networks.backbones, runtime, signals.
"""

from __future__ import annotations

from mess.testing.backbones import BackboneContract
from mess.testing.datasets import DatasetContract
from mess.testing.programs import ProgramContract
from mess.testing.signals import SignalContract

__all__ = ["BackboneContract", "DatasetContract", "ProgramContract", "SignalContract"]
