"""The compiled inner loops of the searches.

May import: common, search.problem.
"""

from pathlib import Path

from mess.common.compiled import forget_outdated

forget_outdated(Path(__file__).parent)
