"""One pass of the network over a split: what every exit answers, counted.

May import: exits, common, networks, signals.
"""

from pathlib import Path

from mess.common.compiled import forget_outdated

forget_outdated(Path(__file__).parent)
