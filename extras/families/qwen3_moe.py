"""qwen3_moe.py: Qwen 3 with many small MLPs in each layer, of which a token uses a few.

    Qwen 3          x + mlp(x)
    Qwen 3 MoE      x + Σ p_e · mlp_e(x), over the 8 experts e that the router finds best for x

The router is one linear map: p = softmax(W x), a probability for each of 128 experts (Shazeer et
al. 2017, "mixture of experts"). The 8 largest are kept, and divided by their sum where config.json
says norm_topk_prob. So a token computes with 3 of 30 billion weights.

What it costs: all experts are in memory, and each is called for its tokens in turn. Programs for
large clusters do that in one kernel. The loss that spreads tokens evenly over experts
(router_aux_loss_coef) belongs to pretraining, and is not computed.

In use where config.json says "model_type": "qwen3_moe".
tests/extras/test_families.py shows that hidden states are those of transformers.
"""
import dataclasses
from typing import NamedTuple

import torch
from torch import nn

from model import MLP, CheckpointError, Config, RewardModel, positive_number


def like_llama(config_json: dict, where: str) -> dict:
    """The config in words that model.read_config knows."""
    return config_json | {"model_type": "qwen3"}


def for_older_versions(config_json: dict) -> dict:
    """Where transformers 4 looks for the number of experts."""
    older = config_json.get("num_local_experts")
    return {"num_experts": config_json.get("num_experts", older)}


def change(model: RewardModel, config_json: dict, where: str) -> None:
    """Take the place of the MLP, in most layers or in all."""
    defaults = {
        "num_experts": config_json.get("num_local_experts"),  # its name in transformers 5
        "decoder_sparse_step": 1,
    }
    given = defaults | config_json
    sizes = Sizes(
        experts=positive_number(given, "num_experts", where),
        used=positive_number(given, "num_experts_per_tok", where),
        width=positive_number(given, "moe_intermediate_size", where),
        normed=given.get("norm_topk_prob"),
    )
    if not isinstance(sizes.normed, bool):
        raise CheckpointError(f"{where}: no norm_topk_prob; refusing to guess")
    if sizes.used > sizes.experts:
        raise CheckpointError(
            f"{where}: num_experts_per_tok {sizes.used} of only {sizes.experts} experts"
        )
    step = positive_number(given, "decoder_sparse_step", where)
    dense = config_json.get("mlp_only_layers") or []
    for index, layer in enumerate(model.model.layers):
        is_dense = index in dense or (index + 1) % step
        if not is_dense:
            layer.mlp = Experts(model.config, sizes)


class Sizes(NamedTuple):
    """What only this family's config says."""

    experts: int
    used: int  # of them, by a token
    width: int  # intermediate_size of an expert
    normed: bool  # do the probabilities of those that are used add up to 1?


class Experts(nn.Module):
    """Σ p_e · mlp_e(x), over the best experts of each token.  (R, T, D) -> (R, T, D)

    Shapes: E experts   K of them are used by a token   M tokens that use one expert
    """

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__()
        self.used = sizes.used
        self.normed = sizes.normed
        self.gate = nn.Linear(config.hidden_size, sizes.experts, bias=False)
        self.experts = nn.ModuleList()
        narrow = dataclasses.replace(config, intermediate_size=sizes.width)
        for _ in range(sizes.experts):
            self.experts.append(MLP(narrow))

    def forward(self, x):
        logits = self.gate(x)  # (R, T, E)
        probabilities = logits.softmax(-1, dtype=torch.float32)
        best, chosen = probabilities.topk(self.used)  # (R, T, K) each
        if self.normed:
            best = best / best.sum(-1, keepdim=True)
        weights = torch.zeros_like(probabilities).scatter(-1, chosen, best)  # (R, T, E)

        total = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            # An expert that no token uses is called too, with no rows: in every process all
            # weights then have a gradient, some of them 0, and the sums over processes fit.
            uses = (chosen == index).any(-1)  # (R, T)
            weight = weights[..., index][uses]  # (M,)
            added = expert(x[uses]) * weight[:, None]  # (M, D)
            at = uses.nonzero(as_tuple=True)  # row and token
            total = total.index_put(at, added.to(x.dtype), accumulate=True)
        return total
