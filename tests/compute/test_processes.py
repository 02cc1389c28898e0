"""What processes say to each other, and how they divide work."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

import pytest
import torch

from mess.compute.processes import ALONE, Processes, divided, torchrun_processes
from tests.workflow.children import forkserver


def tensors_of(rank: int) -> dict[str, torch.Tensor]:
    """Of several types and layouts, of one process."""
    features = torch.arange(24.0).reshape(1, 2, 3, 4) / (rank + 3)
    return {
        "plain": features,
        "last": features.to(memory_format=torch.channels_last),
        "half": features.bfloat16(),
        "labels": torch.full((2, rank + 1), rank),
        "none": torch.empty(0),
        "number": torch.tensor(rank / 7, dtype=torch.float64),
    }


def _exchange(rank: int, port: int, told: Sequence[Sequence[bytes]]) -> None:
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(rank),
        "WORLD_SIZE": str(len(told[0])),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with torchrun_processes() as processes:
        for contents in told:
            assert processes.gather(contents[rank]) == list(contents)
        assert processes.tell("é" if processes.is_first else "another") == "é"
        assert processes.most(rank) == processes.count - 1
        for sender in range(processes.count):
            given = tensors_of(sender)
            found = processes.share(given if rank == sender else None, sender)
            assert list(found) == list(given)
            for name, tensor in given.items():
                assert found[name].dtype == tensor.dtype
                assert found[name].stride() == tensor.stride()
                assert torch.equal(found[name], tensor)
        assert processes.merge({str(rank): rank / 3}, ["1", "0", "2"]) == {
            "1": 1 / 3, "0": 0.0, "2": 2 / 3,
        }  # fmt: skip


def test_every_process_hears_all_the_others_byte_for_byte() -> None:
    """Of any length, zeros at the ends and nothing at all included."""
    told = [
        [b"", b"", b""],
        [b"\0\xff\0", b"", b"x"],
        [bytes(range(256)) * 100, b"\0", b""],
    ]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [forkserver.Process(target=_exchange, args=(rank, port, told)) for rank in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        child.kill()
    assert [child.exitcode for child in children] == [0, 0, 0]


@pytest.mark.parametrize("content", [b"", b"\0x\0"])
def test_a_process_alone_hears_itself(content: bytes) -> None:
    assert ALONE.gather(content) == [content]


def test_costs_are_divided_evenly_and_in_order() -> None:
    costs = {"a": 5.0, "b": 1.0, "c": 4.0, "d": 2.0, "e": 2.0}
    assert divided(costs, 2) == [["a", "e"], ["b", "c", "d"]]
    assert divided(costs, 1) == [list(costs)]
    assert sorted(map(len, divided(costs, 7))) == [0, 0, 1, 1, 1, 1, 1]
    assert [Processes(rank, 2).share_of(costs) for rank in (0, 1)] == divided(costs, 2)
