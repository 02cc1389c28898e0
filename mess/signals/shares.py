"""Shares of confident pixels, compiled: torch's operations take several times as long on a CPU.

Shapes: B images, h×w native positions, K signals, N kinds of confidence.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_MARGIN = 2
"""Of the smoothing window of edge enhancement at native resolution: 4·os + 1 = 5 with os = 1."""


@njit(cache=True, nogil=True)
def confident_shares(confidence_NBhw, label_Bhw, kind_K, threshold_K, edges_K):
    """Shares of confident positions (Eq. 7 of the MESS paper) of a batch, (B, K) float32.

    kind_K chooses the map of confidences, threshold_K what they have to reach. Where edges_K, a
    position at an edge of the label map counts if most of the 5×5 around it do (Eqs. 8-9), borders
    replicated.
    """
    height, width = label_Bhw.shape[1:]
    share_BK = np.empty((len(label_Bhw), len(kind_K)), dtype=np.float32)
    edge_hw = np.empty((height, width), dtype=np.bool_)
    for i in range(len(label_Bhw)):
        label_hw = label_Bhw[i]
        edge_hw[:] = False
        for r in range(height):
            for c in range(width):
                # At the border a position is compared with itself, which is no edge.
                below, beside = min(r + 1, height - 1), min(c + 1, width - 1)
                if label_hw[r, c] != label_hw[below, c]:
                    edge_hw[r, c] = edge_hw[below, c] = True
                if label_hw[r, c] != label_hw[r, beside]:
                    edge_hw[r, c] = edge_hw[r, beside] = True
        for k in range(len(kind_K)):
            confidence_hw, threshold = confidence_NBhw[kind_K[k], i], threshold_K[k]
            confident = 0
            for r in range(height):
                for c in range(width):
                    if not (edges_K[k] and edge_hw[r, c]):
                        confident += confidence_hw[r, c] >= threshold
                        continue
                    around = 0
                    for y in range(r - _MARGIN, r + _MARGIN + 1):
                        y_in = min(max(y, 0), height - 1)
                        for x in range(c - _MARGIN, c + _MARGIN + 1):
                            x_in = min(max(x, 0), width - 1)
                            around += confidence_hw[y_in, x_in] >= threshold
                    # In whole numbers; an odd window has no half.
                    confident += 2 * around > (2 * _MARGIN + 1) ** 2
            # Divided in double precision and rounded once, as `PixelMaps.mean` does.
            share_BK[i, k] = np.float32(confident / (height * width))
    return share_BK
