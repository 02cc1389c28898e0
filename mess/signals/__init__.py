"""What decides whether an image leaves: signals, their maps, the decision itself.

May import: errors, config, common.
"""

from pathlib import Path

from mess.common.compiled import forget_outdated
from mess.signals.signal import FULL, NATIVE, Signal

__all__ = ["FULL", "NATIVE", "Signal"]

forget_outdated(Path(__file__).parent)
