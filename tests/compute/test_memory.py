"""Memory that stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from mess.compute.memory import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(48 * 2**20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    keep_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_blocks_that_are_used_again_are_not_mapped_anew() -> None:
    found = {}
    for way in ("keep", "leave"):
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, way], check=True, capture_output=True, text=True
        )
        found[way] = int(run.stdout)
    assert 10 * found["keep"] < found["leave"]
