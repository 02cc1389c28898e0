"""How an answer came by its certificate, by the names that results and manifests hold.

Apart from what certifies, which takes long to import.
"""

from __future__ import annotations

CROSS = "cross"
"""Each image was left out of the search whose pick it judged."""

FRESH = "fresh"
"""Images that no search saw, of another cache."""

SPLIT = "split"
"""Half of the images were searched, the other half certifies."""

RUN_FOR_REAL = "run"
"""The bundle was run on images that chose nothing."""
