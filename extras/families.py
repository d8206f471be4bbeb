"""families.py: what other decoders do differently.

model.py computes Llama, Mistral, Qwen2 and Qwen3. Many other decoders are the same but for one or
two parts. So a family is one line of a table, MORE_FAMILIES: whose config keys it shares, and a
function that changes the parts of a model that was just built. At that time the model has names
and shapes, but no numbers, so a part that is replaced costs nothing.

    smollm3   Every fourth layer has no positions ("NoPE"): its queries and keys are not rotated
              (Kazemnejad et al. 2023; Yang et al. 2025, "RNoPE"). Such a layer finds a
              token however far away it is; the layers around it know the order.

To add a family, add a line, and a fixture that proves it (tests/make_fixtures.py). A sliding window
needs no code: a window that is in use is the limit of a text's length (longest_text in model.py).

A family is in use where model_type in a model's config.json names it. It costs what Llama costs.
tests/extras/test_families.py shows that hidden states are those of transformers.
"""
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from model import CLASS_NAMES, FAMILIES, Attention, CheckpointError, Padded, RewardModel
from model import positive_number, read_config


def build(config_json: dict, where: str) -> RewardModel:
    """A model of one of these families, without numbers yet.

    Raises: CheckpointError on a model_type that nobody here computes, or on bad settings.
    """
    name = config_json.get("model_type")
    if name not in list(MORE_FAMILIES):
        known = ", ".join([*FAMILIES, *MORE_FAMILIES])
        raise CheckpointError(f"{where}: model_type {name!r} is not one of {known}")
    family = MORE_FAMILIES[name]
    positive_number(config_json, "num_key_value_heads", where)  # only Llama 1 may leave it out
    config = read_config(config_json | {"model_type": family.like}, where)
    # It is saved under its own names, not under those of the family it is like.
    config.model_type = name
    config.config_json = config_json
    CLASS_NAMES[name] = family.class_name
    model = RewardModel(config)
    family.change(model, config_json, where)
    return model


# ---------------------------------------------------------------- smollm3


class AttentionWithoutPositions(Attention):
    """Attention whose queries and keys are not rotated."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, form: Padded) -> Tensor:
        """x (R, T, D), rotary tables (T, P) each, which are not used -> (R, T, D)"""
        # A rotation by 0: cos 0 = 1 and sin 0 = 0.
        return super().forward(x, torch.ones_like(cos), torch.zeros_like(sin), form)


def leave_positions_out(model: RewardModel, config_json: dict, where: str) -> None:
    """Give some layers attention without positions."""
    rotates = layers_that_rotate(config_json, where)
    for layer, rotated in zip(model.model.layers, rotates):
        if not rotated:
            layer.self_attn = AttentionWithoutPositions(model.config)


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


# ---------------------------------------------------------------- the table


class Family(NamedTuple):
    """One line of the table."""

    class_name: str  # what transformers calls it: the SmolLM3 of SmolLM3ForCausalLM
    like: str  # the family of model.py that has the same config keys
    change: Callable[[RewardModel, dict, str], None]  # makes of that family this one


MORE_FAMILIES = {
    "smollm3": Family("SmolLM3", like="llama", change=leave_positions_out),
}
