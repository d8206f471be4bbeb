"""Step for step beside TRL's RewardTrainer: a folder that minRM wrote, head included, trained on by both.

    python benchmarks/parity.py --data PAIRS.jsonl.gz --trl PYTHON

PYTHON is the interpreter of an environment with TRL. Both start from the same weights and see the same token ids in the
same order: 20 steps of 4 pairs, float32, AdamW, no weight decay, constant learning rate. Losses and what differs go to
benchmarks/parity.json;  --tables  prints what the README quotes.
"""
import argparse
import json
import sys
import tempfile
from pathlib import Path

import speed

RESULTS = Path(__file__).with_suffix(".json")
STEPS, PAIRS = 20, 4
SHAPE = speed.SHAPES["30m"] | {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
                               "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}


def compare(data: str, trl: str) -> dict:
    """Losses of every step, ours and TRL's, and the largest difference."""
    settings = {"batch": PAIRS, "accumulation": 1, "dtype": "float32", "device": "cpu", "lr": 3e-4, "max_length": 256}
    with tempfile.TemporaryDirectory() as folder:
        speed.prepare(Path(folder), SHAPE, data, STEPS * PAIRS, settings["max_length"])
        runs = {who: speed.spawn(python, who, Path(folder), settings) for who, python in (("ours", sys.executable), ("trl", trl))}
    assert runs["ours"]["tokens"] == runs["trl"]["tokens"], "not the same token ids"
    ours, theirs = (runs[who]["losses"] for who in ("ours", "trl"))
    assert len(ours) == len(theirs) == STEPS
    return {
        "losses": {"ours": ours, "trl": theirs}, "largest_difference": max(abs(a - b) for a, b in zip(ours, theirs)),
        "settings": settings, "shape": SHAPE, "versions": runs["trl"]["versions"], "machine": speed.machine(),
        "command": f"python benchmarks/parity.py --data {Path(data).parent.name}/{Path(data).name} --trl PYTHON",
    }


def tables() -> dict[str, str]:
    """What the README says, from the result file."""
    r = json.loads(RESULTS.read_text("utf-8"))
    ours = r["losses"]["ours"]
    return {"parity": f"losses between {min(ours):.2f} and {max(ours):.2f} over {len(ours)} steps, and at no step more than "
                      f"{r['largest_difference']:.0e} from TRL {r['versions']['trl']}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="preference pairs, in any layout train_rm.py reads")
    parser.add_argument("--trl", metavar="PYTHON")
    parser.add_argument("--tables", action="store_true", help="print what the README quotes")
    args = parser.parse_args()
    if not args.tables:
        if not args.data or not args.trl:
            parser.error("--data and --trl are needed")
        RESULTS.write_text(json.dumps(compare(args.data, args.trl), indent=1) + "\n")
    print("\n".join(tables().values()))


if __name__ == "__main__":
    main()
