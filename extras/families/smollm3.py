"""smollm3.py: SmolLM 3 is Llama, but every fourth layer has no positions.

The queries and keys of such a layer are not rotated ("NoPE", Kazemnejad et al. 2023; Yang et al.
2025, "RNoPE"). It finds a token however far away it is; the layers around it know the order.

In use where config.json says "model_type": "smollm3". It costs what Llama costs.
tests/extras/test_families.py shows that hidden states are those of transformers.
"""
import torch
from torch import Tensor

from model import Attention, CheckpointError, Padded, RewardModel, positive_number


def like_llama(config_json: dict, where: str) -> dict:
    """The config in words that model.read_config knows."""
    return config_json | {"model_type": "llama"}


def change(model: RewardModel, config_json: dict, where: str) -> None:
    """Give some layers attention without positions."""
    rotates = layers_that_rotate(config_json, where)
    for layer, rotated in zip(model.model.layers, rotates):
        if not rotated:
            layer.self_attn = AttentionWithoutPositions(model.config)


class AttentionWithoutPositions(Attention):
    """Attention whose queries and keys are not rotated."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, form: Padded) -> Tensor:
        """x (R, T, D), rotary tables (T, P) each, which are not used -> (R, T, D)"""
        # A rotation by 0: cos 0 = 1 and sin 0 = 0.
        return super().forward(x, torch.ones_like(cos), torch.zeros_like(sin), form)


def layers_that_rotate(config_json: dict, where: str) -> list:
    """For each layer 1 or 0: whether it rotates queries and keys.

    The key is called no_rope_layers, and yet its 0 is the layer that has no rope.
    """
    layers = config_json["num_hidden_layers"]
    listed = config_json.get("no_rope_layers")
    if listed:
        if not isinstance(listed, list) or len(listed) != layers:
            raise CheckpointError(
                f"{where}: no_rope_layers is not a list of one number for each of {layers} layers"
            )
        return listed
    interval = 4
    if config_json.get("no_rope_layer_interval") is not None:
        interval = positive_number(config_json, "no_rope_layer_interval", where)
    rotates = []
    for number in range(1, layers + 1):
        rotates.append(int(number % interval != 0))
    return rotates
