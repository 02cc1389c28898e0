"""What decides whether an image leaves: signals, what they are made of, the decision."""

from mess.signals.signal import FULL, NATIVE, Signal

__all__ = ["FULL", "NATIVE", "Signal"]
