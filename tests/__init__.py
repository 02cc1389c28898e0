"""Tests; each folder is named after the room it tests."""

import os

# Tiny tensors: a second thread only waits for the first. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
