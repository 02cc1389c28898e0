"""What decides whether an image leaves: signals, their maps, the decision itself.

May import: errors, config, common.
"""

from mess.signals.signal import FULL, NATIVE, Signal

__all__ = ["FULL", "NATIVE", "Signal"]
