"""Step for step beside TRL's RewardTrainer, from a folder that we saved, its value head included.

    python benchmarks/parity.py --data PAIRS.jsonl.gz --trl PYTHON
    python benchmarks/parity.py --tables        what the README quotes

PYTHON is the interpreter of an environment with TRL. All start from the same weights and see the
same token ids in the same order: 20 steps of 4 pairs in float32. AdamW has the same betas, weight
decay and clipping, and a constant learning rate at which a step matters. The losses of TRL, of the
plain form and of --pack go to parity.json.

Then both continue from the run folder that the plain form left. TRL gets the dialogues only: the
token ids are those that it makes with the folder's tokenizer and chat template.
"""
import json
import shutil
import sys
import tempfile
from pathlib import Path

from common import SHAPES, how_made, largest_difference, new_parser, spawn, write
from prepare import prepare

import train_rm
from data import epoch_order

HERE = Path(__file__).resolve()
RESULTS = HERE.with_suffix(".json")
TRAINERS = HERE.with_name("trainers.py")
STEPS, PAIRS = 20, 4
SHAPE = SHAPES["30m"] | {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
SETTINGS = {
    "batch": PAIRS,
    "accumulation": 1,
    "dtype": "float32",
    "device": "cpu",
    "lr": 3e-4,
    "weight_decay": 0.01,
    "betas": train_rm.BETAS,
    "max_length": 256,
}


def compare(data: str, trl: str) -> dict:
    """The losses of every step, and how far ours are from TRL's."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), SHAPE, data, STEPS * PAIRS, SETTINGS["max_length"])
        settings = SETTINGS | {"folder": folder}
        runs = {
            "packed": spawn(sys.executable, TRAINERS, "ours", settings | {"options": ["--pack"]}),
            "plain": spawn(sys.executable, TRAINERS, "ours", settings | {"options": []}),
            "trl": spawn(trl, TRAINERS, "trl", settings),
        }
        continued = continue_from_run(Path(folder), trl)
    check_same_ids(runs)
    losses = {name: run["losses"] for name, run in runs.items()}
    return {
        "losses": losses,
        "largest_difference": largest_difference(losses["plain"], losses["trl"]),
        "largest_difference_packed": largest_difference(losses["packed"], losses["trl"]),
        "continued": continued,
        "settings": SETTINGS,
        "shape": SHAPE,
        "versions": runs["trl"]["versions"],
    }


def continue_from_run(folder: Path, trl: str) -> dict:
    """The losses of both from a run folder of ours, on the same dialogues."""
    second = folder / "second"
    shutil.copytree(folder / "run", second / "model")
    for name in ("pairs.jsonl", "held_out.jsonl"):
        shutil.copy(folder / name, second)
    rows = [json.loads(line) for line in (second / "pairs.jsonl").read_text("utf-8").splitlines()]
    in_order = [rows[number] for number in epoch_order(len(rows), 0, 0)]
    (second / "texts.json").write_text(json.dumps(in_order), "utf-8")
    settings = SETTINGS | {"folder": str(second)}
    runs = {
        "ours": spawn(sys.executable, TRAINERS, "ours", settings | {"options": []}),
        "trl": spawn(trl, TRAINERS, "trl", settings | {"texts": True}),
    }
    check_same_ids(runs)
    losses = {name: run["losses"] for name, run in runs.items()}
    first = abs(losses["ours"][0] - losses["trl"][0])
    return {
        "losses": losses,
        "first_difference": first,
        "largest_difference": largest_difference(losses["ours"], losses["trl"]),
    }


def check_same_ids(runs: dict[str, dict]) -> None:
    """Ends the program where the runs did not see the same token ids."""
    if len({run["tokens"] for run in runs.values()}) > 1:
        sys.exit(f"not the same token ids: {', '.join(runs)}")


def tables() -> dict[str, str]:
    """What the README says, from the result file."""
    r = json.loads(RESULTS.read_text("utf-8"))
    losses, version = r["losses"]["plain"], r["versions"]["trl"]
    sentence = (
        f"losses between {min(losses):.2f} and {max(losses):.2f} over {len(losses)} steps, and at "
        f"no step more than {r['largest_difference']:.0e}\n"
        f"(with `--pack` {r['largest_difference_packed']:.0e}) from TRL {version}"
    )
    of_run = r["continued"]
    ours, theirs = of_run["losses"]["ours"][0], of_run["losses"]["trl"][0]
    continued = (
        f"first losses of {ours:.5f} and {theirs:.5f},\n"
        f"and at no step are the two more than {of_run['largest_difference']:.0e} apart"
    )
    return {"parity": sentence, "continued": continued}


def main() -> None:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--data", help="preference pairs, in any layout that train_rm.py reads")
    parser.add_argument("--trl", metavar="PYTHON")
    args = parser.parse_args()
    if not args.tables:
        if not args.data or not args.trl:
            parser.error("--data and --trl are needed")
        write(RESULTS, compare(args.data, args.trl) | how_made())
    print("\n".join(tables().values()))


if __name__ == "__main__":
    main()
