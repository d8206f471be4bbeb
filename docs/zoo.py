"""The bug zoo: classic mistakes of reward models, planted one at a time.

    python docs/zoo.py            train with each mistake (10 minutes on two cores), write zoo.json
    python docs/zoo.py --page     write bugs.md from zoo.json
    python docs/zoo.py --picture  draw pictures/zoo.svg from zoo.json; needs matplotlib
    python docs/zoo.py --plant 3 hunt      a copy with the third mistake, for others to find

Each mistake is a change of a few lines. It is made in a copy of the five files and of extras/. The
copy trains on the toy world, and the test that guards this place is run there: it has to fail.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
RESULTS = DOCS / "zoo.json"
PAGE = DOCS / "bugs.md"
PICTURE = DOCS / "pictures" / "zoo.svg"
STEPS = 1200
SHOWN = (300, 600, 1200)  # the steps whose training loss is shown


class Bug(NamedTuple):
    """One mistake."""

    name: str
    changes: list  # (file, what stands there, what stands there instead)
    lesson: str
    guard: str  # file::test
    seen: str  # where it happened in public
    options: tuple = ()  # of train_rm.py, without which it makes no difference


LAST = "        return attention_mask.sum(-1, keepdim=True) - 1\n"
SELECT = "    r_chosen, r_rejected = rewards[batch.chosen], rewards[batch.rejected]  # (B,) each\n"
BUGS = [
    Bug(
        "the reward is read in the last column",
        [("model.py", LAST, "        T = attention_mask.shape[1]\n"
          "        return torch.full_like(attention_mask[:, :1], T - 1)\n")],
        "The shorter text of a batch is read at a pad. The model learns to carry its judgement into "
        "the pads, so training looks nearly right. But a reward now depends on how long the other "
        "texts of its batch are.",
        "tests/test_model.py::test_the_reward_is_the_same_alone_and_in_a_padded_batch",
        "TRL #937, transformers #35352",
    ),
    Bug(
        "every chosen response against every rejected one",
        [("train_rm.py", SELECT, "    r_chosen = rewards[batch.chosen][:, None]  # (B, 1)\n"
          "    r_rejected = rewards[batch.rejected]  # (B,)\n"),
         ("train_rm.py", '    return {\n        "loss": losses,',
          '    losses = losses.mean(0)\n    r_chosen = r_chosen[:, 0]\n'
          '    return {\n        "loss": losses,'),
         ("loss.py", "    check_shapes(r_chosen, r_rejected)\n    if not 0", "    if not 0"),
         ("loss.py", "    check_shapes(gap, margin)\n", "")],
        "Shapes (B, 1) and (B,) broadcast to (B, B): answers to different questions are compared. "
        "The loss has the right size and falls.",
        "tests/test_loss.py::test_unequal_shapes_are_refused_not_broadcast",
        "TRL PR #1196 (shapes of what a wrapper returns)",
    ),
    Bug(
        "attention sees what comes later, pads too",
        [("model.py", "is_causal=True, enable_gqa", "is_causal=False, enable_gqa")],
        "Pads take part in every hidden state. The accuracy can be as good as before, and a text "
        "has another reward in every batch.",
        "tests/test_model.py::test_pads_have_no_gradient_and_no_effect",
        "reward-bench #137",
    ),
    Bug(
        "chosen and rejected swapped in the evaluation",
        [("eval.py", "records.append((r[i], r[j],", "records.append((r[j], r[i],")],
        "Training is right and the report says that the model is worse than a coin. What is worse, "
        "the model with the lowest held-out loss is kept, and that is now an early one. An accuracy "
        "far below one half is never bad luck.",
        "tests/test_eval.py::test_every_figure_agrees_with_a_computation_by_hand",
        "RLHFlow #16 (an accuracy of about 1%, there from a doubled BOS)",
    ),
    Bug(
        "a new head at load",
        [("model.py", '        if "score.weight" in state or "score.0.weight" in state:\n',
          '        model.init_head()\n'
          '        if "score.weight" in state or "score.0.weight" in state:\n')],
        "Every loss in the log is right. The model that was saved is right as well. Only what is "
        "computed after opening it is noise.",
        "tests/test_model.py::test_rewards_survive_saving_and_loading_bit_for_bit",
        "LLaMA-Factory #430 and #9369, TRL #1379, ms-swift #9239",
    ),
    Bug(
        "dropout before the head",
        [("model.py", "rewards = self.score(last_hidden.float())",
          "rewards = self.score(F.dropout(last_hidden.float(), 0.1, self.training))")],
        "Both rewards of a pair get noise of their own, and the loss sees their difference. In this "
        "short run nobody would notice: the training loss is a little higher than the held-out loss.",
        "tests/test_model.py::test_two_passes_in_training_agree_because_nothing_is_dropped_out",
        "LLaMA-Factory's value head has a dropout of 0.1",
    ),
    Bug(
        "accumulated gradients are not divided",
        [("train_rm.py", '        loss = (batch.weight * values["loss"]).sum()\n',
          '        loss = values["loss"].mean()\n')],
        "With four micro-batches the gradient is four times too large. Clipping hides it, and AdamW "
        "forgives a constant factor. Where micro-batches have different sizes it is not constant.",
        "tests/test_train.py::test_accumulation_takes_the_step_of_the_big_batch",
        "transformers and others, 2024: the gradient accumulation bug",
        ("--gradient-accumulation-steps", "4"),
    ),
    Bug(
        "the same prompt on both sides of the split",
        [("data.py", "    identity = row.prompt\n    if not identity:\n",
          "    identity = row.prompt\n    if True:\n")],
        "Rows are split, not prompts. The model is evaluated on questions that it was trained on, "
        "and looks better than it is on new ones.",
        "tests/test_data.py::test_no_prompt_is_on_both_sides_whatever_else_differs_in_its_rows",
        "scripts of OpenRLHF and RLHFlow split rows",
    ),
    Bug(
        "the end token is lost",
        [("data.py", "            with_end.append(text if text.endswith(self.end_token) "
          "else text + self.end_token)\n", "            with_end.append(text.removesuffix(self.end_token))\n"),
         ("data.py", 'if not self.as_rendered and self.encode(["x"])', 'if self.encode(["x"])'),
         ("data.py", "[0][-1] != self.end_id:\n", "[0][-1] == self.end_id:\n")],
        "The program refuses to start; here that check is taken out as well. Then nothing in the log "
        "looks wrong. But the reward is read at the last word: an answer that stops "
        "in the middle of a sentence looks the same as one that has ended.",
        "tests/test_data.py::test_bos_once_where_the_tokenizer_uses_one_and_the_end_token_once_and_last",
        "reward-bench PR #94 (up to 6 points), OpenRLHF #238",
    ),
    Bug(
        "the prompt is left out",
        [("data.py", "texts.append(self.render(row.prompt + response, tools=row.tools))",
          "texts.append(self.render(response, tools=row.tools))")],
        "The model learns manners and cannot learn truth: whether an answer is right depends on the "
        "question. On real data this loses a few points, and nobody misses them.",
        "tests/test_batches.py::test_the_prompt_is_the_same_tokens_in_all_sequences_and_the_response_the_rest",
        "LLaMA-Factory #5967 (another text in use than in training)",
    ),
    Bug(
        "chosen and rejected swapped in the loss",
        [("loss.py", "-F.logsigmoid(gap - margin)", "-F.logsigmoid(margin - gap)")],
        "The loss falls as it should, and the accuracy falls with it.",
        "tests/test_loss.py::test_a_pair_that_is_ranked_right_costs_less_than_one_that_is_ranked_wrong",
        "not found in a tracker; the same as columns that change places in the data",
    ),
]


def planted(folder: Path, bug: Bug) -> None:
    """Make the change.  Raises: ValueError where today's code has no such lines."""
    for file, old, new in bug.changes:
        path = folder / file
        text = path.read_text("utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{bug.name}: {file} has {text.count(old)} times {old!r}")
        path.write_text(text.replace(old, new), "utf-8")


def copied(folder: Path, names=("extras", "tests")) -> Path:
    """The five files and some folders in another place."""
    for path in [*ROOT.glob("*.py"), ROOT / "README.md", ROOT / "requirements.txt"]:
        shutil.copy(path, folder)
    for name in names:
        shutil.copytree(ROOT / name, folder / name)
    return folder


def plant_for_others(number: str, name: str) -> None:
    """A copy of the code with one mistake, without the tests that would name it."""
    folder = Path(name)
    if not number.isdigit() or not 1 <= int(number) <= len(BUGS) or folder.exists():
        sys.exit(f"--plant N FOLDER: N from 1 to {len(BUGS)}, and FOLDER must not be there yet")
    folder.mkdir(parents=True)
    planted(copied(folder, ["extras"]), BUGS[int(number) - 1])  # checks would name it too


def trained(folder: Path, options: tuple) -> dict:
    """The training losses, and the report at the end."""
    command = [sys.executable, "train_rm.py", "--max-steps", str(STEPS), "--output", "run"]
    run = subprocess.run([*command, *options], cwd=folder, capture_output=True, text=True)
    if run.returncode:
        return {"error": run.stderr.strip().splitlines()[-1]}
    losses = {}
    for line in (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines():
        line = json.loads(line)
        if "loss" in line:
            losses[line["step"]] = line["loss"]
    report = json.loads((folder / "run" / "report.json").read_text("utf-8"))
    means = {}
    for step in range(100, STEPS + 1, 100):  # the mean of ten lines: single ones are noisy
        last = [losses[s] for s in losses if step - 100 < s <= step]
        means[str(step)] = sum(last) / len(last)
    kept = ("loss", "accuracy", "gold_correlation")
    return {"losses": means, "report": {name: report[name] for name in kept}}


def guarded(folder: Path, bug: Bug) -> bool:
    """Whether the guard fails on the planted bug."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", bug.guard]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if run.returncode not in (0, 1):
        sys.exit(run.stdout[-2000:])
    return run.returncode == 1


def measure() -> dict:
    """Everything that the page says, by the name of the bug."""
    found = {}
    rights = {()} | {bug.options for bug in BUGS}
    for options in sorted(rights):
        with tempfile.TemporaryDirectory() as folder:
            name = " ".join(["right", *options])
            found[name] = trained(copied(Path(folder)), options)
            print(name, found[name], flush=True)
    for bug in BUGS:
        with tempfile.TemporaryDirectory() as folder:
            planted(copied(Path(folder)), bug)
            caught = guarded(Path(folder), bug)
            found[bug.name] = trained(Path(folder), bug.options) | {"caught": caught}
            print(bug.name, found[bug.name], flush=True)
    return found


def row(name: str, entry: dict) -> str:
    """One line of the table."""
    if "error" in entry:
        return f"| {name} | {entry['error']} | | | | | |"
    losses = [f"{entry['losses'][str(step)]:.2f}" for step in SHOWN]
    report = entry["report"]
    cells = [name, *losses, f"{report['loss']:.2f}", f"{report['accuracy']:.3f}",
             f"{report['gold_correlation']:.2f}"]
    return "| " + " | ".join(cells) + " |"


def page(found: dict) -> str:
    """bugs.md."""
    lines = [
        "# The bug zoo",
        "",
        "Eleven mistakes, planted one at a time in the code of today (`python docs/zoo.py`), each trained",
        f"for {STEPS:,} steps on the toy world. Look at the losses: most of these runs look fine. That is the lesson.",
        "Tests of what a number means find such mistakes; a falling loss does not.",
        "",
        "![Training loss of each mistake beside that of the right code](pictures/zoo.svg)",
        "",
        "| | training loss before step 300 | 600 | 1,200 | held-out loss | accuracy | gold correlation |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in found.items():
        lines.append(row(name, entry))
    for bug in BUGS:
        test = bug.guard.partition("::")[2]
        lines += ["", f"## {bug.name[0].upper()}{bug.name[1:]}", "", bug.lesson, ""]
        if bug.options:
            lines += [f"Run with `{' '.join(bug.options)}`.", ""]
        for file, old, new in bug.changes:
            lines += [f"In {file}:", "", "```diff"]
            lines += [f"-{line}" for line in old.rstrip("\n").splitlines()]
            lines += [f"+{line}" for line in new.rstrip("\n").splitlines()]
            lines += ["```", ""]
        lines += [f"Given away by `{test}`. Seen in public: {bug.seen}."]
    lines += [
        "",
        "Not here: a doubled BOS, because the toy world's tokenizer has none",
        "(`test_bos_once_where_the_tokenizer_uses_one_and_the_end_token_once_and_last`), and responses that",
        "are cut, because its texts are short (`test_a_response_is_never_cut`).",
    ]
    return "\n".join(lines) + "\n"


def draw(found: dict) -> None:
    """The training loss of each mistake, beside that of the right code with the same options."""
    from extras import plots

    figure, axes = plots.pyplot().subplots(
        3, 4, figsize=(11, 7), sharex=True, sharey=True, layout="constrained"
    )
    axes = list(axes.flat)
    for bug in BUGS:
        axis, right = axes.pop(0), " ".join(["right", *bug.options])
        for name, style in ((right, "--"), (bug.name, "-")):
            steps = [int(step) for step in found[name]["losses"]]
            color = plots.RED if style == "-" else plots.BLUE
            axis.plot(steps, [*found[name]["losses"].values()], style, color=color)
        axis.set_title(textwrap.fill(bug.name, 28), fontsize=10)
    axes[0].axis("off")
    axes[0].text(0, 0.5, "solid: with the mistake\ndashed: right\n\nx: step\ny: training loss, nats")
    figure.savefig(PICTURE)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plant"] and len(sys.argv) == 4:
        plant_for_others(*sys.argv[2:])
        sys.exit()
    if "--picture" in sys.argv:
        sys.path.insert(0, str(ROOT))
        draw(json.loads(RESULTS.read_text("utf-8")))
        sys.exit()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    if "--page" not in sys.argv:
        RESULTS.write_text(json.dumps(measure(), indent=1) + "\n", "utf-8")
    PAGE.write_text(page(json.loads(RESULTS.read_text("utf-8"))), "utf-8")
