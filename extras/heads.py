"""heads.py: where a reward is read from the last hidden state, in models of other projects.

model.py has one linear map. Most projects have the same, some under a name of their own. A few have
two maps with a ReLU between them:

    one map      h ── w, b ──► r                        two maps     h ── W, b ── ReLU ── w, b ──► r
                (D)                                                 (D)      (M)

    score               transformers, TRL               score.0, score.2
    v_head.summary      LLaMA-Factory                       M = D: Qwen2.5-Math-RM, INF-ORM
    value_head          OpenRLHF                        v_head.summary.0, v_head.summary.2
    regression_head     Eurus-RM                            M = 1024: GRM (Yang et al. 2024)
    v_head, out_proj    others

The numbers count the parts of an nn.Sequential, and a ReLU is a part that holds no numbers. No file
says that it is a ReLU: the code of these projects does. GRM may have more maps (.4, …), and another
M: config.json of such a model has vhead_num_layers and vhead_num_neurons.

Reading needs no option: a head with one of these names is opened and kept. One of two maps is
scored with, trained, and saved under the names and the `architectures` it came with. So the
program that made it reads it again: vLLM and SGLang open a Qwen2ForRewardModel; GRM's own class
and RewardBench's open v_head.summary. transformers' own <Family>ForSequenceClassification has one
map, and would put random numbers in its place. A last bias cancels in every difference. It is
trained only under the centering penalty, as that of a plain head is; other biases are trained.

Refused, each in a sentence that says what it is: two heads; a head of several labels; rewards that
are mixed by a gating network (ArmoRM), or that are whole distributions (QRM).

It costs M·D numbers, and no time: it runs on one state of each text.
tests/extras/test_heads.py proves rewards, gradients and the names in the saved files.
"""
from pathlib import Path

from torch import Tensor, nn

from model import CheckpointError, RewardModel

HEADS = ("score", "v_head.summary", "value_head", "v_head", "out_proj", "regression_head")
# How the names of tensors begin that only other kinds of rewards have.
OTHER_KINDS = ("gating.", "gating_layer.", "regression_layer.", "reward_transform_matrix")


class HeadOfLayers(nn.Sequential):
    """Linear, ReLU, Linear.  (..., D) -> (..., 1)

    The weight and bias of its last map are where a plain head has them.
    """

    @property
    def weight(self) -> Tensor:
        return self[-1].weight

    @property
    def bias(self) -> Tensor:
        return self[-1].bias


def translate(state: dict[str, Tensor], model: RewardModel, folder: Path) -> dict[str, Tensor]:
    """The same tensors with the head called `score`, and model.score made to take them.

    Raises: CheckpointError on a head of another kind, and where there is more than one head.
    """
    config_json = model.config.config_json
    refuse_other_kinds(state, config_json, folder)
    head = name_of_head(state, config_json, folder)
    if head is None:
        return state
    if head == "v_head.summary":
        # Its projects read the reward at the last token of the mask, and compare no ids.
        config_json["pad_token_id"] = None
    renamed = {}  # the name in the file -> ours
    for name in state:
        part = name.removeprefix(f"{head}.")
        if name != part and (part in ("weight", "bias") or part[0].isdigit()):
            renamed[name] = f"score.{part}"
    if f"{head}.weight" in state:
        refuse_several_labels(f"{head}.weight", state[f"{head}.weight"].shape, folder)
        if "value_head_prefix" in config_json:  # OpenRLHF would look for the old name
            model.saved_config["value_head_prefix"] = "score"
    else:
        model.score = head_of_layers(state, sorted(renamed), model.config.hidden_size, folder)
        for name, ours in renamed.items():
            model.saved_names[ours] = name
        if "architectures" in config_json:
            model.saved_config["architectures"] = config_json["architectures"]

    translated = {}
    for name, tensor in state.items():
        translated[renamed.get(name, name)] = tensor
    return translated


def name_of_head(state: dict[str, Tensor], config_json: dict, folder: Path) -> str | None:
    """What the head is called in these tensors; None where there is no head."""
    known = [*HEADS]
    prefix = config_json.get("value_head_prefix")  # OpenRLHF
    if isinstance(prefix, str) and prefix not in known:
        known.append(prefix)
    found = []
    for head in known:
        if f"{head}.weight" in state or f"{head}.0.weight" in state:
            found.append(head)
    if len(found) > 1:
        names = ", ".join(found)
        raise CheckpointError(f"{folder}: more than one reward head ({names}); refusing to guess")
    return found[0] if found else None


def head_of_layers(state: dict, names: list[str], size: int, folder: Path) -> HeadOfLayers:
    """Maps with a ReLU between two of them, without numbers yet.

    Args:    names: of the head's tensors in state, sorted.
             size: D, the numbers in a hidden state.
    Raises:  CheckpointError unless they are called 0, 2, … with a bias each, and fit each other.
    """
    head = names[0].rpartition(".0.")[0]
    expected = []
    for number in range(0, len(names), 2):  # a map has two tensors
        expected += [f"{head}.{number}.bias", f"{head}.{number}.weight"]
    if names != sorted(expected):
        raise CheckpointError(
            f"{folder}: a head of the parts {', '.join(names)}; computed here are linear maps with "
            f"a ReLU between two of them ({head}.0, {head}.2), each with weight and bias"
        )
    parts = []
    for name in expected[1::2]:
        shape = list(state[name].shape)
        if len(shape) != 2 or shape[1] != size:
            raise CheckpointError(f"{folder}: {name} is {shape}, and its input has {size} numbers")
        if parts:
            parts.append(nn.ReLU())
        parts.append(nn.Linear(size, shape[0], device="meta"))
        size = shape[0]
    refuse_several_labels(name, shape, folder)
    return HeadOfLayers(*parts)


# ---------------------------------------------------------------- heads that are not computed


def refuse_several_labels(name: str, shape: list[int], folder: Path) -> None:
    """Raises: CheckpointError unless a head's last weight gives one number."""
    if len(shape) != 2 or shape[0] == 1:
        return
    labels, size = shape
    raise CheckpointError(
        f"{folder}: {name}: a head of {labels} labels, [{labels}, {size}] (a reward model's is "
        f"[1, {size}]): a classifier, several kinds of rewards, or a judge of each step of a text. "
        f"It gives no one number to rank by; use the program that made it"
    )


def refuse_other_kinds(state: dict[str, Tensor], config_json: dict, folder: Path) -> None:
    """Raises: CheckpointError where the reward is not one number that a head gives."""
    for name in sorted(state):
        if not name.startswith(OTHER_KINDS):
            continue
        if config_json.get("num_quantiles"):
            kind = "predicts the quantiles of several rewards, a distribution each (as QRM does)"
        else:
            kind = "mixes several rewards, by weights that a gating network reads from the prompt"
            kind += " (as ArmoRM does)"
        raise CheckpointError(
            f"{folder}: {name}: a head that {kind}. Here a reward is one number that a head reads "
            f"at the last token; use the program that made it"
        )
