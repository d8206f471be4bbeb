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

import torch
from torch import Tensor, nn

from model import MLP, CheckpointError, Config, RewardModel, positive_number


def like_llama(config_json: dict, where: str) -> dict:
    """The config in words that model.read_config knows."""
    return config_json | {"model_type": "qwen3"}


def change(model: RewardModel, config_json: dict, where: str) -> None:
    """Take the place of the MLP, in most layers or in all."""
    # transformers 5 writes num_local_experts.
    experts = positive_number(
        {"num_experts": config_json.get("num_local_experts")} | config_json, "num_experts", where
    )
    used = positive_number(config_json, "num_experts_per_tok", where)
    width = positive_number(config_json, "moe_intermediate_size", where)
    step = positive_number({"decoder_sparse_step": 1} | config_json, "decoder_sparse_step", where)
    normed = config_json.get("norm_topk_prob")
    if not isinstance(normed, bool):
        raise CheckpointError(f"{where}: no norm_topk_prob; refusing to guess")
    if used > experts:
        raise CheckpointError(f"{where}: num_experts_per_tok {used} of only {experts} experts")
    dense = config_json.get("mlp_only_layers") or []
    for index, layer in enumerate(model.model.layers):
        if index not in dense and (index + 1) % step == 0:
            layer.mlp = Experts(model.config, experts, used, width, normed)


class Experts(nn.Module):
    """Σ p_e · mlp_e(x), over the best experts of each token.  (R, T, D) -> (R, T, D)

    Shapes: E experts   K of them are used by a token   M tokens that use one expert
    """

    def __init__(self, config: Config, experts: int, used: int, width: int, normed: bool):
        super().__init__()
        narrow = dataclasses.replace(config, intermediate_size=width)
        self.gate = nn.Linear(config.hidden_size, experts, bias=False)
        self.experts = nn.ModuleList()
        for _ in range(experts):
            self.experts.append(MLP(narrow))
        self.used = used
        self.normed = normed

    def forward(self, x: Tensor) -> Tensor:
        probabilities = self.gate(x).softmax(-1, dtype=torch.float32)  # (R, T, E)
        best, chosen = probabilities.topk(self.used)  # (R, T, K) each
        if self.normed:
            best = best / best.sum(-1, keepdim=True)
        weights = torch.zeros_like(probabilities).scatter(-1, chosen, best)  # (R, T, E)

        total = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            # An expert that no token uses is called too, with no rows: in every process all
            # weights then have a gradient, some of them 0, and the sums over processes fit.
            row, token = (chosen == index).any(-1).nonzero(as_tuple=True)  # (M,) each
            added = expert(x[row, token]) * weights[row, token, index, None]  # (M, D)
            total = total.index_put((row, token), added.to(x.dtype), accumulate=True)
        return total
