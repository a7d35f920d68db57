"""Several processes that train one adapter.

    accelerate launch --num_processes 4 -m training.fit --model BASE --problems gsm8k_train ...

The first process does the whole fit. The others wait, and help in its trainings alone: each takes
its share of every batch, and gradients are averaged over all of them before the optimizer's step.
So the adapter is the same as that of one process, but for rounding.

With `--use_fsdp` the base lies in shards on all of them (training/sharded_base.py).

The first one tells the others what to call, a function and its arguments, as an object over gloo;
None ends them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from training.hf_model import free_memory

# A sampling stage may take a day, in which the others wait.
PATIENCE = timedelta(days=7)
# What `accelerate launch --use_fsdp` sets. Of its other settings none applies here.
FSDP = "ACCELERATE_USE_FSDP"

_sharded = False


def launched() -> bool:
    """Whether `accelerate launch`, or torchrun, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join() -> None:
    """Become one of the group that was launched."""
    global _sharded  # noqa: PLW0603
    # Taken away: accelerate would shard LoRA too, and on a GPU alone.
    wanted = os.environ.pop(FSDP, "false").lower() == "true"
    if not launched() or dist.is_initialized():
        return
    _sharded = wanted
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=PATIENCE)


def leave() -> None:
    """End the group; the others end too, where this is the first process."""
    if not dist.is_initialized():
        return
    if rank() == 0:
        _tell(None)
    dist.destroy_process_group()


def rank() -> int:
    """The number of this process; the first one is 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sharded() -> bool:
    """Whether the base lies in shards on all processes."""
    return _sharded and dist.is_initialized()


def call_the_others(work: Callable[..., object], **arguments: Any) -> None:
    """In the first process: have all others call `work`, a function of a module, too."""
    if count() > 1 and rank() == 0:
        _tell((work, arguments))


def help_the_first() -> None:
    """In every other process: call what the first one says, until it leaves."""
    while (job := _hear()) is not None:
        work, arguments = job
        work(**arguments)
        free_memory()  # the first one may sample on this GPU next


def least(number: int) -> int:
    """The least of the numbers that all processes give."""
    given = torch.tensor(number)
    dist.all_reduce(given, dist.ReduceOp.MIN)
    return int(given)


def total(numbers: torch.Tensor) -> list[int]:
    """The sums of the numbers, [N] on the CPU, that all processes give."""
    if dist.is_initialized():
        dist.all_reduce(numbers)
    found: list[int] = numbers.tolist()
    return found


def share(batch_size: int, accumulation: int) -> tuple[int, int]:
    """(batch size, accumulation) of each process, so that all together train on one batch as given.

    Raises:
        ValueError: the batch cannot be shared evenly.
    """
    number = count()
    if accumulation % number == 0:
        return batch_size, accumulation // number
    if batch_size % number == 0:
        return batch_size // number, accumulation
    raise ValueError(
        f"optimizer.accumulation: neither it ({accumulation}) nor optimizer.batch_size "
        f"({batch_size}) is a multiple of the {number} processes; change one of them"
    )


def _tell(job: Any) -> None:
    dist.broadcast_object_list([job], src=0, device=torch.device("cpu"))


def _hear() -> Any:
    heard: list[Any] = [None]
    dist.broadcast_object_list(heard, src=0, device=torch.device("cpu"))
    return heard[0]
