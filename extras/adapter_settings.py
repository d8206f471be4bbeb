"""adapter_settings.py: what the adapter_config.json of PEFT means.

    {"peft_type": "LORA", "base_model_name_or_path": "owner/name", "r": 16, "lora_alpha": 32,
     "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["score"]}

A change of a matrix W is s · B A (extras/adapters.py adds it). Its size s depends on two numbers:

    s = α / r           lora_alpha and r (Hu et al. 2021, §4.1)
    s = α / √r          with use_rslora: a large rank then still changes the model
                        (Kalajdzievski 2023, "rank stabilization")
    rank_pattern, alpha_pattern    {"layers.3.*.q_proj": 64}: an r or an α of their own for the
                                   matrices whose name fits. The first pattern that fits counts.

Which matrices have factors:

    target_modules          a list of the ends of names, a regular expression for whole names, or
                            "all-linear"
    exclude_modules         but not these
    layers_to_transform     and only in these layers

The file of factors must have those matrices and no others. PEFT would leave a surplus out, and what
is missing as it is, with a warning. Here both are errors: mostly the base is another one.

modules_to_save names parts that were trained as a whole. The head is nearly always among them.

All other settings fall into two groups. WITHOUT_EFFECT changed the training, not what was trained.
Anything else that is switched on, known today (DoRA: use_dora) or not, is an error that names it.

In use for every adapter; costs nothing. tests/extras/test_adapters.py proves it against PEFT.
The published list of settings: LoraConfig in the documentation of PEFT.
"""
import math
import re
from pathlib import Path

from model import CheckpointError, positive_number, read_json

CONFIG = "adapter_config.json"
OBEYED = {
    "peft_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "use_rslora",
    "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "layers_to_transform",
    "modules_to_save", "bias", "init_lora_weights",
}
WITHOUT_EFFECT = {
    "task_type", "auto_mapping", "parent_library", "peft_version", "inference_mode",
    "lora_dropout", "megatron_core", "qalora_group_size", "ensure_weight_tying", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config",
    "fan_in_fan_out",  # PEFT goes by the kind of each module, whatever this says
}
# Other ways to start the factors (PiSSA, OLoRA, …) change the base as well.
STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


def read(folder: Path) -> "AdapterSettings":
    """adapter_config.json.  Raises: CheckpointError at a setting that is not computed here."""
    if not (folder / CONFIG).exists():
        raise CheckpointError(f"--base: {folder} is no adapter (it has no {CONFIG})")
    where = str(folder / CONFIG)
    values = read_json(folder / CONFIG)
    kind = values.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{where}: peft_type {kind!r} is not computed here, only 'LORA'")
    bias = values.get("bias", "none")
    if bias != "none":
        raise CheckpointError(f"{where}: bias {bias!r} is not computed here, only 'none'")
    start = values.get("init_lora_weights")
    if start not in STARTS:
        raise CheckpointError(f"{where}: init_lora_weights {start!r} is not computed here: "
                              "it changes the base too")
    for key, value in values.items():
        if value and key not in OBEYED and key not in WITHOUT_EFFECT:
            raise CheckpointError(f"{where}: {key} {value!r} is not computed here")
    check_types(values, where)
    return AdapterSettings(values, where)


def check_types(values: dict, where: str):
    """Raises: CheckpointError where a setting is not of the type that PEFT writes."""
    names = (list, str, type(None))
    types = {
        "base_model_name_or_path": (str, type(None)),
        "revision": (str, type(None)),
        "rank_pattern": (dict, type(None)),
        "alpha_pattern": (dict, type(None)),
        "target_modules": (list, str),
        "exclude_modules": names,
        "modules_to_save": (list, type(None)),
        "layers_to_transform": (list, int, type(None)),
    }
    for key, allowed in types.items():
        value = values.get(key)
        if not isinstance(value, allowed):
            raise CheckpointError(f"{where}: {key} is {value!r}; expected what PEFT writes")


class AdapterSettings:
    """The settings of one adapter. Names of matrices are PEFT's: model.layers.0.mlp.up_proj."""

    def __init__(self, values: dict, where: str):
        self.values, self.where = values, where
        self.base = values.get("base_model_name_or_path")
        self.revision = values.get("revision")

    def rank(self, name: str) -> int:
        """r of a matrix."""
        value = self.own_value("rank_pattern", "r", name)
        return positive_number({"r": value}, "r", self.where)

    def scale(self, name: str) -> float:
        """s of a matrix."""
        value = self.own_value("alpha_pattern", "lora_alpha", name)
        alpha = positive_number({"lora_alpha": value}, "lora_alpha", self.where, (int, float))
        rank = self.rank(name)
        if self.values.get("use_rslora"):
            return alpha / math.sqrt(rank)
        return alpha / rank

    def own_value(self, pattern: str, key: str, name: str):
        """What a pattern says of a matrix, or where none fits, what all others have."""
        for own, value in (self.values.get(pattern) or {}).items():
            if self.fits(rf"(.*\.)?({own})", name):
                return value
        return self.values.get(key)

    def fits(self, pattern: str, name: str) -> bool:
        """Whether a regular expression of the file describes the whole name."""
        try:
            return bool(re.fullmatch(pattern, name))
        except re.error as e:
            raise CheckpointError(f"{self.where}: {pattern!r} is no pattern ({e})") from None

    # ---------------------------------------------------------------- which matrices

    def check_factors(self, with_factors: list[str], matrices: list[str]):
        """Raises: CheckpointError unless the matrices with factors are those of target_modules.

        Args: matrices: all of the base, by the names in its files.
        """
        ends = sorted({last_part(name) for name in with_factors})
        for name in with_factors:
            if not self.is_target(name, ends):
                raise CheckpointError(f"{self.where}: target_modules leaves {name} out, and the "
                                      "adapter has factors for it")
        have = set()
        for name in with_factors:
            have |= {name, f"model.{name}", name.partition(".")[2]}
        for name in matrices:
            if name not in have and self.is_target(name, ends):
                raise CheckpointError(f"{self.where}: an adapter of another base: it has no "
                                      f"factors for {name}")

    def is_target(self, name: str, ends: list[str]) -> bool:
        """Whether target_modules and what limits it give this matrix factors.

        Args: ends: the last parts of names that do have factors: what "all-linear" meant.
        """
        targets = self.values["target_modules"]
        if targets == "all-linear":
            targets = ends
        excluded = self.values.get("exclude_modules")
        if excluded and self.is_named(name, excluded):
            return False
        for part in self.values.get("modules_to_save") or []:
            if f".{part}." in f".{name}.":
                return False
        if not self.is_named(name, targets):
            return False
        layers = self.values.get("layers_to_transform")
        if layers is None or layers == [] or isinstance(targets, str):
            return True
        number = re.match(r".*?\.[^.]*\.(\d+)\.", name)
        if isinstance(layers, int):
            layers = [layers]
        return number is not None and int(number[1]) in layers

    def is_named(self, name: str, names: list | str) -> bool:
        """Whether a list has this name or its end; or a regular expression describes it."""
        if isinstance(names, str):
            return self.fits(names, name)
        for end in names:
            if name == end or name.endswith(f".{end}"):
                return True
        return False

    def check_whole(self, tensors: list[str], of_base: list[str]):
        """Raises: CheckpointError where a part of modules_to_save is not in the adapter."""
        for part in self.values.get("modules_to_save") or []:
            inside = re.compile(rf"(.*\.)?{re.escape(str(part))}\..*")
            if any(map(inside.match, of_base)) and not any(map(inside.match, tensors)):
                raise CheckpointError(f"{self.where}: modules_to_save names {part!r}, and the "
                                      "adapter has no tensor of it")


def last_part(name: str) -> str:
    """model.layers.0.mlp.up_proj -> up_proj."""
    return name.rpartition(".")[2]
