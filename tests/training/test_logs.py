"""The log of figures: a resumed run goes on from its rows, whatever else a kill or a disk left."""

from __future__ import annotations

import json
from pathlib import Path

from mess.training.logs import MetricsLog


def test_rewinding_keeps_the_rows_before_and_drops_what_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.rewind("stage1", 0)
    for iteration in (1, 2, 3):
        log.append("stage1", iteration, mean=1 / iteration)
    log.append("stage2", 9, final=0.25)
    rows = path.read_text().splitlines(keepends=True)
    path.write_bytes("".join(["null\n", *rows, "}{\n"]).encode() + b"\xff\n" + b'{"stage": "cut')
    log.rewind("stage1", 2)
    assert path.read_text() == "".join([*rows[:2], rows[3]])
    assert json.loads(rows[0]) == {"stage": "stage1", "iteration": 1, "mean": 1.0}
