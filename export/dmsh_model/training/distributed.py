"""Training in several processes that torchrun starts, on one machine or many, each with a part of every batch.

    torchrun --nproc-per-node 2 -m dmsh_model fit DATA --out MODEL

Gradients are averaged (DistributedDataParallel), so every process has the same weights at every step. The pairwise loss
sees the pairs within a process's part. BN: on GPUs its statistics are taken over all parts (SyncBatchNorm); on CPUs
PyTorch has no such layer: each process normalises with its own part's, and the running statistics that the trained
network uses are averaged over the processes after every epoch. The first process alone measures and writes.
"""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dmsh_serving.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Ranks", "joined", "local_rank", "started_by_torchrun"]

RUNNING_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together: its number ``rank``, from 0, of ``count``."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that measures and writes."""
        return self.rank == 0

    def part_of(self, batch_size: int) -> int:
        """Return how many images of a batch are this process's.

        Raises:
            InputError: they cannot be shared out evenly, two at least to each.
        """
        if batch_size % self.count or batch_size // self.count < 2:
            raise InputError(
                f"batch_size = {batch_size} must be a multiple of the {self.count} processes, at least 2 images each"
            )
        return batch_size // self.count

    def wrapped(self, network: "nn.Module") -> "nn.Module":
        """Return ``network`` with its gradients averaged over the processes; alone, as it is."""
        if self.count == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        # Each process keeps its own running statistics until they are averaged. The option's name depends on PyTorch's
        # release: the older one warns in 2.14, the newer is not there before.
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        own: dict[str, Any] = {name: False}
        return DistributedDataParallel(network, **own)

    def mean(self, values: "torch.Tensor") -> "torch.Tensor":
        """Return the mean of every process's ``values``, in place."""
        if self.count > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
            values /= self.count
        return values

    def average_statistics(self, model: "nn.Module") -> None:
        """Average the running statistics of BN over the processes."""
        for name, buffer in model.named_buffers():
            if name.endswith(RUNNING_STATISTICS):
                self.mean(buffer)

    def of_first(self, value: float, device: "torch.device") -> float:
        """Return the first process's ``value`` to every process."""
        if self.count == 1:
            return value
        import torch
        import torch.distributed as dist

        shared = torch.tensor(value, dtype=torch.float64, device=device)
        dist.broadcast(shared, src=0)
        return shared.item()

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier()


def started_by_torchrun() -> Ranks:
    """Return this process's place as torchrun gives it in the environment; rank 0 of 1 if torchrun did not start it."""
    return Ranks(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def local_rank() -> int:
    """Return the number of this process on its machine, from 0: that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined(device: "torch.device") -> Iterator[Ranks]:
    """Join the other processes for the time of the block."""
    ranks = started_by_torchrun()
    if ranks.count == 1:
        yield ranks
        return
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
