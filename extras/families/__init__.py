"""families: what other decoders do differently. One file a family; this one has the table.

model.py computes Llama, Mistral, Qwen2 and Qwen3. Other decoders differ from Llama in a few parts:

                   norms               positions          attention             MLP
    smollm3        —                   in 3 of 4 layers   —                     —
    olmo2          after, not before   —                  q, k normed           —
    phi3           —                   —                  one matrix            one matrix
    gemma2         before and after    —                  windows, a soft cap   GELU
    gemma3_text    before and after    two bases          windows; q, k normed  GELU
    gpt_neox       LayerNorm           a quarter turns    one matrix, biases    GELU, no gate
    gpt2           LayerNorm           an embedding       one matrix, biases    GELU, no gate
    qwen3_moe      —                   —                  q, k normed           8 of 128 MLPs

A family is one line of MORE_FAMILIES: what transformers calls it, and a file with these functions:

    like_llama(config_json, where)      the config in words that model.read_config knows. What is
                                        not computed is refused by its key.
    change(model, config_json, where)   puts this family's parts into a model that was just built.
                                        At that time a model has names and shapes, but no numbers,
                                        so a part that is replaced costs nothing.

    for_older_versions(config_json)     where a config is saved: what transformers 4 reads under
                                        other keys. Only some families need it.

All decoders keep three names: embed_tokens, layers, norm. So LoRA, sharding, --used-rows and the
rest work without knowing families. Where Hugging Face has other names for them, NAMES says so, and
Renaming translates when weights are read and written.

To add a family, add a file, a line, and a fixture that proves it (tests/make_fixtures.py). Dropout
is left out in all of them (model.Decoder says why).

A family is in use where model_type in a model's config.json names it.
tests/extras/test_families.py shows that hidden states are those of transformers.
"""
from types import ModuleType
from typing import NamedTuple

from torch import Tensor

from extras.families import gemma, gpt2, gpt_neox, olmo2, phi3, qwen3_moe, smollm3
from extras.families.smollm3 import AttentionWithoutPositions
from model import CLASS_NAMES, FAMILIES, CheckpointError, RewardModel, positive_number
from model import read_config

__all__ = ["MORE_FAMILIES", "AttentionWithoutPositions", "Renaming", "build"]


class Family(NamedTuple):
    """One line of the table."""

    class_name: str  # what transformers calls it: the SmolLM3 of SmolLM3ForCausalLM
    file: ModuleType  # it has like_llama and change


MORE_FAMILIES = {
    "smollm3": Family("SmolLM3", smollm3),
    "olmo2": Family("Olmo2", olmo2),
    "phi3": Family("Phi3", phi3),
    "gemma2": Family("Gemma2", gemma),
    "gemma3_text": Family("Gemma3Text", gemma),
    "gpt_neox": Family("GPTNeoX", gpt_neox),
    "gpt2": Family("GPT2", gpt2),
    "qwen3_moe": Family("Qwen3Moe", qwen3_moe),
}


def build(config_json: dict, where: str) -> RewardModel:
    """A model of one of these families, without numbers yet.

    Raises: CheckpointError on a model_type that nobody here computes, or on bad settings.
    """
    name = config_json.get("model_type")
    if name not in list(MORE_FAMILIES):
        known = ", ".join([*FAMILIES, *MORE_FAMILIES])
        raise CheckpointError(f"{where}: model_type {name!r} is not one of {known}")
    family = MORE_FAMILIES[name]
    words = family.file.like_llama(config_json, where)
    positive_number(words, "num_key_value_heads", where)  # only Llama 1 may leave it out
    config = read_config(words, where)
    # It is saved under its own names, not under those of the family it is like.
    config.model_type = name
    config.config_json = config_json
    if hasattr(family.file, "for_older_versions"):
        config.config_json = config_json | family.file.for_older_versions(config_json)
    CLASS_NAMES[name] = family.class_name
    model = RewardModel(config)
    family.file.change(model, config_json, where)
    if hasattr(family.file, "NAMES"):
        speak(model, Renaming(family.file))
    return model


class Renaming:
    """Names of tensors in files, where they are not those of the modules here.

        file      transformer.h.0.ln_1.weight    wte.weight                   score.weight
        module    model.layers.0.ln_1.weight     model.embed_tokens.weight    score.weight
    """

    def __init__(self, family: ModuleType):
        self.prefix = family.PREFIX
        self.names = family.NAMES  # theirs -> ours
        self.transposed = getattr(family, "TRANSPOSED", ())  # ends of names

    def ours(self, name: str) -> str:
        """A checkpoint of the bare decoder has no prefix."""
        first, _, rest = name.removeprefix(self.prefix).partition(".")
        if first not in self.names:
            return name  # of the head
        return f"model.{self.names[first]}.{rest}"

    def theirs(self, name: str) -> str:
        """The other way."""
        for theirs, ours in self.names.items():
            start = f"model.{ours}."
            if name.startswith(start):
                return f"{self.prefix}{theirs}.{name.removeprefix(start)}"
        return name


def speak(model: RewardModel, renaming: Renaming) -> None:
    """From now on model.state_dict() has their names, and load_state_dict takes them."""
    model.renaming = renaming
    model.register_state_dict_post_hook(when_saving)
    model.register_load_state_dict_pre_hook(when_loading)
    model.register_load_state_dict_post_hook(when_loaded)


def when_saving(model: RewardModel, state: dict[str, Tensor], *_) -> None:
    """torch calls this when model.state_dict() is called."""
    for name in list(state):
        tensor = state.pop(name)
        if name.endswith(model.renaming.transposed):
            tensor = tensor.T
        state[model.renaming.theirs(name)] = tensor


def when_loading(model: RewardModel, state: dict[str, Tensor], *_) -> None:
    """torch calls this when model.load_state_dict(state) is called, with a copy of state."""
    for name in list(state):
        tensor = state.pop(name)
        if name.endswith(model.renaming.transposed):
            tensor = tensor.T.contiguous()  # extras/sharding.py needs it so
        state[model.renaming.ours(name)] = tensor


def when_loaded(model: RewardModel, found) -> None:
    """An error names what the file has, not what the modules here are called."""
    for names in (found.missing_keys, found.unexpected_keys):
        names[:] = map(model.renaming.theirs, names)
