"""sharding.py: n processes share one model, instead of having a copy each.

    torchrun --nproc-per-node 8 train_rm.py --model DIR --data pairs.jsonl --bf16 --shard

A trained weight takes 16 bytes: itself, its gradient and AdamW's two moments, in float32. A model
of 7 billion weights takes 112 GB, and DDP keeps all of them on every GPU. ZeRO, stage 3, keeps 1/n
of each tensor on each of n GPUs (Rajbhandari et al. 2020, §5). A layer is put together just before
it computes, and dropped right after:

    at rest        GPU 0  ▖ ▖ ▖ ▖        GPU 1  ▗ ▗ ▗ ▗        each has half of every layer
    forward        GPU 0  ▖ █ ▖ ▖        GPU 1  ▗ █ ▗ ▗        gather layer 2, compute, drop it
    backward       GPU 0  ▖ █ ▖ ▖        GPU 1  ▗ █ ▗ ▗        gather it again; of its gradient
                                                               each keeps the mean of its half

    bytes on a GPU:  16 N / n for N weights, and one whole layer, and the activations

Every GPU works on its own rows, and gradients are means over all processes, as with DDP. So the
step is the same. torch calls this FSDP2: fully_shard(layer) makes each parameter a DTensor,
split by its rows.

What it costs: 1.5 times the traffic of DDP (§7.2.2), and in every micro-batch instead of once a
step. Use it because a model does not fit, not for speed.

With --bf16 layers are gathered and computed in bfloat16, which halves the traffic. Each GPU's share
of the weights and the sums of gradients are float32. A layer that was sharded for bfloat16 computes
under autocast only. To compute in float32, open the saved model and shard it with dtype None.

tests/extras/test_sharding.py proves, for 1, 2 and 4 processes: the gradients and steps are those of
one process, each process keeps its share only, and none ever holds two whole layers.
"""
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from model import RewardModel, check_finite, whole


def shard(model: RewardModel, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Leave 1/n of every parameter on this process's device.

    The weights are copied from their file here, layer by layer: no process ever holds more than
    one whole layer (or the embedding). This takes the place of RewardModel.take_weights.

    Args:   device: where this process computes.
            dtype: in which layers compute, autocast's; None for float32. The embedding, the last
            norm and the head are always gathered as they are.
    """
    if not dist.is_initialized():
        start_alone(device)
    processes = dist.get_world_size()
    mesh = init_device_mesh(device.type, (processes,))
    # Inputs keep their type. The sum that every layer adds to is float32, and would be rounded.
    policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    for layer in model.model.layers:
        take_weights(layer, device, model.folder)
        fully_shard(layer, mesh=mesh, mp_policy=policy)
        layer.register_state_dict_post_hook(put_together)

    # The rest: embedding, last norm, head.
    take_weights(model, device, model.folder)
    model.register_forward_hook(copy_rewards)
    # Without reshard_after_forward these would stay in one piece after an evaluation. Then
    # model.parameters() would not be those that AdamW knows.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    model.register_state_dict_post_hook(put_together)


def start_alone(device: torch.device) -> None:
    """A process group of one, for --shard without torchrun."""
    backend = "gloo"
    if device.type == "cuda":
        backend = "nccl"
        torch.cuda.set_device(device.index or 0)
    store = dist.HashStore()  # where processes would find each other
    dist.init_process_group(backend, store=store, rank=0, world_size=1)


def take_weights(module: nn.Module, device: torch.device, folder: Path | None) -> None:
    """RewardModel.take_weights for a part of the model. What is sharded already is left alone."""
    for parameter in module.parameters():
        if isinstance(parameter, DTensor):
            continue
        dtype = parameter.dtype
        if parameter.requires_grad:
            dtype = torch.float32
        parameter.data = parameter.data.to(device, dtype, copy=True)
        check_finite(parameter.data, folder)


def copy_rewards(model: RewardModel, inputs, rewards: Tensor) -> Tensor:
    """FSDP2 starts the backward pass by a hook on the output. A view could lose that hook."""
    return rewards.clone()


def put_together(module: nn.Module, state: dict, prefix: str, _) -> None:
    """In a state_dict, put whole tensors in place of shards. The first process keeps them.

    torch calls this for each layer and then for the model, when model.state_dict() is called. All
    processes have to call that. Since it goes layer by layer, only the first process needs memory
    for a whole model, and that on its CPU.
    """
    names = [name for name in state if name.startswith(prefix)]
    for name in names:
        tensor = state.pop(name)
        if isinstance(tensor, DTensor):
            # A copy, on a CPU too: without, it may be part of a longer, padded piece of memory,
            # which cannot be saved.
            tensor = whole(tensor).to("cpu", copy=True)
        if dist.get_rank() == 0:
            state[name] = tensor
