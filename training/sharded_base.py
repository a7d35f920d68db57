"""A base that no GPU holds alone: each of several processes keeps a share of every layer (FSDP).

    accelerate launch --use_fsdp --num_processes 4 -m training.fit --model Qwen/Qwen2.5-32B ...

A layer's weights are gathered when it runs, and dropped after it. LoRA is small: every process has
all of it, and gradients are averaged as without shards.

A pass gathers from all processes, so all of them must make it. In a step of training they do. They
do not where the first process computes alone (entropies of rollouts, estimates of checkpoints), or
where each computes what it lacks (the base's caches). There they run `in_step`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from training import processes
from training.hf_model import decoder, free_memory


def load(load_base: Callable[..., Any]) -> Any:
    """The base that `load_base` gives, in shards where the processes were launched for that.

    The processes of a machine load one after another, so that its memory holds one whole base.
    """
    if not processes.sharded():
        return load_base()
    model = None
    for turn in range(int(os.environ["LOCAL_WORLD_SIZE"])):
        if turn == int(os.environ["LOCAL_RANK"]):
            model = shard(load_base(device="cpu"))
            free_memory()
        dist.barrier()
    return model


def shard(model: Any) -> Any:
    """Keep this process's share of a frozen base; layers go to the GPU one by one.

    Raises:
        ValueError: transformers does not say what the model's layers are.
    """
    model.requires_grad_(False)
    inner, head = decoder(model), model.get_output_embeddings()
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in inner.modules() if type(module).__name__ in names]
    if not layers:
        raise ValueError(
            f"model: transformers names no layers of {type(model).__name__}, so it cannot be "
            "sharded; launch without --use_fsdp"
        )
    # One tensor cannot belong to two groups: embeddings that are the head too stay whole.
    tied = {head.weight} & set(inner.parameters())
    for layer in layers:
        fully_shard(layer, ignored_params=tied)
    fully_shard(inner, ignored_params=tied)
    if not tied:
        fully_shard(head)
    device = next(layers[0].parameters()).device
    for parameter in tied:
        parameter.data = parameter.data.to(device)
    return model


def averaged(model: nn.Module) -> DistributedDataParallel:
    """`model` with LoRA on a sharded base: gradients of LoRA are averaged over the processes."""
    frozen = [name for name, one in model.named_parameters() if not one.requires_grad]
    buffers = [name for name, _ in model.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen + buffers)
    return DistributedDataParallel(model)


# ------------------------------------------------------- where processes make different passes


@contextmanager
def in_step(model: Any) -> Iterator[None]:
    """Within, each process may run `model` as often as it likes, or not at all, without gradients.

    Before each pass all processes agree on what runs next. Those that need something else run it
    on a single token, and those that are done do so until all are.
    """
    if not processes.sharded():
        yield
        return
    parts = _parts(model)
    done = len(parts)
    joining = False

    def wait_for(mine: int) -> None:
        """Join the passes of others until it is this process's turn."""
        nonlocal joining
        while not joining and (turn := processes.least(mine)) != mine:
            joining = True
            _join(model, parts, turn)
            joining = False

    handles = [
        # Prepended: before FSDP's own hook, which gathers.
        part.register_forward_pre_hook(lambda *_, mine=number: wait_for(mine), prepend=True)
        for number, part in enumerate(parts)
    ]
    try:
        yield
        wait_for(done)
    finally:
        for handle in handles:
            handle.remove()


def _parts(model: Any) -> list[Any]:
    """What gathers by itself when it is called: the decoder and, if it is sharded, the head."""
    head = model.get_output_embeddings()
    return [decoder(model), *([head] if isinstance(head, FSDPModule) else [])]


@torch.no_grad()
def _join(model: Any, parts: list[Any], turn: int) -> None:
    """Bring this process's share to a pass that others need, on one token."""
    if turn == 0:
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        parts[0](input_ids=token, use_cache=False)
    else:
        size = model.config.get_text_config().hidden_size
        parts[turn](torch.zeros(1, size, dtype=parts[turn].weight.dtype, device=model.device))


@contextmanager
def lent(load_base: Callable[..., Any]) -> Iterator[Any]:
    """The base for the first process alone, while the others bring their shares."""
    if processes.sharded():
        processes.call_the_others(_lend, load_base=load_base)
    model = load(load_base)
    with in_step(model):
        yield model


def _lend(load_base: Callable[..., Any]) -> None:
    with in_step(load(load_base)):
        pass
