"""The processes that share a piece of work: torchrun's, or this one alone."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from mess.errors import MessError

_PATIENCE = timedelta(hours=12)
"""How long a process waits for the slowest; torchrun sees a dead one much sooner."""


@dataclass(frozen=True)
class Processes:
    """`count` processes of which this one is `rank`; alone, it talks to nobody.

    Every process must call the same methods in the same order.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def here(self) -> int:
        """How many of them share this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def wait(self) -> None:
        """Until all are here."""
        # torch's own barrier would take a GPU, and not yet know which.
        self.most(0)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def share_first(self, tensor: Tensor) -> None:
        """Give every process the first one's values, in place."""
        if self.count > 1:
            dist.broadcast(tensor, 0)

    def share(self, tensors: Mapping[str, Tensor] | None, rank: int) -> Mapping[str, Tensor]:
        """Those of the process `rank` by name, in the layout they have there; others give None.

        On the CPU, and without gradients.
        """
        own = {} if tensors is None else {name: t.clone() for name, t in tensors.items()}
        told = [[n, str(t.dtype), t.shape, t.stride()] for n, t in own.items()]
        described = self.gather(json.dumps(told).encode() if self.rank == rank else b"")[rank]
        found = {}
        for name, dtype, shape, stride in json.loads(described):
            kind = getattr(torch, dtype.removeprefix("torch."))
            found[name] = own.get(name, torch.empty_strided(shape, stride, dtype=kind))
            # As bytes, of whatever type; a clone leaves no gaps between its numbers.
            flat = found[name].as_strided((found[name].numel(),), (1,))
            dist.broadcast(flat.view(torch.uint8), rank)
        return found

    def most(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.count == 1:
            return value
        values = torch.tensor([value])
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)

    def merge(self, figures: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
        """The figures of all, by `names`, each of which exactly one process has."""
        if self.count > 1:
            # Each is added to zeros alone, so nothing is rounded: logs are those of one process.
            values = [figures.get(name, 0.0) for name in names]
            values = self.sum(torch.tensor(values, dtype=torch.float64)).tolist()
            return dict(zip(names, values, strict=True))
        return dict(figures)

    def gather(self, content: bytes) -> list[bytes]:
        """What every process gave, in order of rank."""
        # Not torch's all_gather_object, no shorter: it unpickles, and so runs, what others send.
        sizes = torch.zeros(self.count, dtype=torch.int64)
        sizes[self.rank] = len(content)
        lengths = self.sum(sizes).tolist()
        # Each has its own part and zeros elsewhere, so that the sum is every part in its place.
        together = torch.zeros(sum(lengths), dtype=torch.uint8)
        parts = together.split(lengths)
        if content:
            # A bytearray: torch warns of memory that it may not write to.
            parts[self.rank].copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        self.sum(together)
        return [part.numpy().tobytes() for part in parts]

    def tell(self, text: str) -> str:
        """The first process's text."""
        return self.gather(text.encode() if self.is_first else b"")[0].decode()

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its sum over the processes, in one message."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.count == 1 or not gradients:
            return
        together = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = together.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def share_of(self, costs: Mapping[str, float]) -> list[str]:
        """The names this process takes over, so that all have about the same cost."""
        return divided(costs, self.count)[self.rank]


ALONE = Processes()


def divided(costs: Mapping[str, float], parts: int) -> list[list[str]]:
    """Names in `parts` lists of about the same cost, each in the order of `costs`.

    The dearest first, each to the list that costs least so far.
    """
    lists: list[set[str]] = [set() for _ in range(parts)]
    totals = [0.0] * parts
    # Graham's rule: the dearest list is at most 4/3 of the best division's. The sort is stable and
    # the first of the cheapest is taken, so every process finds the same division.
    for name in sorted(costs, key=lambda name: -costs[name]):
        cheapest = totals.index(min(totals))
        lists[cheapest].add(name)
        totals[cheapest] += costs[name]
    return [[name for name in costs if name in chosen] for chosen in lists]


@contextmanager
def torchrun_processes() -> Iterator[Processes]:
    """The place among the processes torchrun started; alone where it did not start this one."""
    if not dist.is_torchelastic_launched():
        yield ALONE
    elif dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size())
    else:
        # By device: counts and figures are on the CPU, gradients where they were computed.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store, rank, count = next(rendezvous("env://", timeout=_PATIENCE))
        dist.init_process_group(
            backend, store=_of_this_attempt(store), rank=rank, world_size=count, timeout=_PATIENCE
        )
        try:
            yield Processes(rank, count)
        except RuntimeError as error:
            if not re.search("gloo|nccl", str(error), re.IGNORECASE):
                raise
            raise MessError(
                f"process {rank} ends because another one did; what that one said is the reason."
            ) from error
        # Not after an error: the others might wait in a message that never comes.
        dist.destroy_process_group()


def _of_this_attempt(store: Store) -> Store:
    """A store without the addresses of processes that died.

    torchrun's store outlives a restart on one machine; a process could read there where another
    one was before it. Several machines need not agree on the number of the attempt: there, set
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
    """
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return store
    return PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
