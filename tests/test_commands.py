"""The commands report, score and rank, as a user runs them, and score() from Python."""
import io
import json
import math
import os
import re
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import torch
from conftest import ROOT, command, copy_run, save_run, tiny_model, tiny_tokenizer, write_rows
from safetensors.torch import load_file, save_file
from test_eval import examples_from, toy_rows

import eval as evaluation
from data import DataError, batch_function
from eval import check_ids, describe, report, score, score_examples
from model import RewardModel


def json_lines(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def run_command(*args, stdin="") -> list[dict]:
    """The rows that a command writes."""
    status, out, err = command(evaluation.main, *args, stdin=stdin)
    assert status == 0, err
    return [json.loads(line) for line in out.splitlines()]


def refusal(*args, stdin="") -> str:
    """The one line with which a command refuses its input."""
    status, out, err = command(evaluation.main, *args, stdin=stdin)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    return err


def run_report(run, file, *options) -> dict:
    """The figures that the command report writes."""
    options = ["--data", file, "--output", file.with_suffix(".json"), *options]
    status, out, err = command(evaluation.main, "report", run, *options)
    assert status == 0, err
    figures = json.loads(file.with_suffix(".json").read_text())
    assert out.strip() == describe(figures)
    assert f"{figures['audit']['read']} rows read = {figures['audit']['kept']} kept" in err
    return figures


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval") / "run"
    return save_run(folder, tiny_model(), tiny_tokenizer(bos=True), max_length=256)


# ---------------------------------------------------------------- one scoring path


@pytest.mark.parametrize("pack", [False, True])
def test_rewards_do_not_depend_on_what_shares_a_batch(monkeypatch, pack):
    rows = []
    for i in range(1, 7):
        pair = {"chosen": "a", "rejected": "the cat " * i}
        rows.append({"prompt": "q " * (5 * i % 13)} | pair)
    many = [f"cat {i}" for i in range(20)]  # too many for a small batch: they are cut
    rows.append({"prompt": "q", "responses": many, "scores": list(range(20))})
    model, examples, alone = tiny_model(), examples_from(rows), []
    for example in examples:
        for ids in example.sequences:
            input_ids = torch.tensor(ids)[None]
            alone.append(model(input_ids, torch.ones_like(input_ids)).item())
    for budget in (1, 64, 200, 10**6):
        monkeypatch.setattr(evaluation, "TOKENS_PER_BATCH", budget)
        rewards = score_examples(model, examples, batch_function(pack), 0)
        assert [len(r) for r in rewards] == [len(e.sequences) for e in examples]
        np.testing.assert_allclose(np.concatenate(rewards), alone, atol=1e-5, err_msg=(
            f"{budget} tokens a batch: rewards have changed, are in another order, or left out"
        ))
        for pieces, _ in evaluation.batches_by_length(examples):
            lengths = [len(ids) for piece in pieces for ids in piece.sequences]
            assert len(lengths) == 1 or len(lengths) * max(lengths) <= budget


def test_processes_share_an_evaluation_and_count_each_text_once(monkeypatch):
    """One after the other, without torchrun. The sum over processes is what all of them get."""
    rows = [{"prompt": "q", "chosen": "the cat", "rejected": "a"}]
    rows.append({"prompt": "r", "responses": ["a", "the dog", "mat"], "scores": [1, 2, 3]})
    model, examples = tiny_model(), examples_from(rows)
    monkeypatch.setattr(evaluation, "TOKENS_PER_BATCH", 1)  # five batches of one text
    alone = np.concatenate(score_examples(model, examples, batch_function(False), 0))
    passes, together = [], 0
    monkeypatch.setattr(evaluation.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(evaluation.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(evaluation.dist, "all_reduce", lambda tensor: None)
    model.register_forward_hook(lambda *_: passes.append(number))
    for number in range(2):
        monkeypatch.setattr(evaluation.dist, "get_rank", lambda: number)
        rewards = score_examples(model, examples, batch_function(False), 0)
        together = together + np.concatenate(rewards)
    np.testing.assert_allclose(together, alone, atol=1e-5, err_msg=(
        "is the last, incomplete round left out, or filled with a text that counts twice?"
    ))
    assert passes == [0, 0, 0, 1, 1, 1], "with unequal passes, a sharded model waits for ever"


@pytest.mark.parametrize("options", [[], ["--pack"]])
def test_report_score_rank_and_the_model_itself_agree(run, tmp_path, options):
    model, rows = RewardModel.from_pretrained(run), toy_rows(6)
    examples = examples_from(rows, tiny_tokenizer(bos=True), 256)
    rewards = score_examples(model, examples, batch_function(False), pad_id=0)
    sides = [{"prompt": row["prompt"], "response": row[field]}
             for row in rows for field in ("chosen", "rejected")]
    by_call = score(model, sides)
    np.testing.assert_allclose(np.concatenate(rewards), by_call, atol=1e-5)

    scored = run_command("score", run, *options, stdin=json_lines(*sides))
    np.testing.assert_allclose([row["reward"] for row in scored], by_call, atol=1e-5)

    both = {"prompt": rows[0]["prompt"], "responses": [rows[0]["rejected"], rows[0]["chosen"]]}
    (ranked,) = run_command("rank", run, *options, stdin=json_lines(both))
    expected = {rows[0]["chosen"]: by_call[0], rows[0]["rejected"]: by_call[1]}
    assert dict(zip(ranked["responses"], ranked["rewards"])) == pytest.approx(expected, abs=1e-5)
    assert ranked["rewards"] == sorted(ranked["rewards"], reverse=True), "the best comes first"
    assert [both["responses"][i] for i in ranked["order"]] == ranked["responses"]

    saved = run_report(run, write_rows(tmp_path / "pairs.jsonl", rows), *options)
    expected = report(rewards, examples)
    for name in ("accuracy", "ties", "loss", "mean_chosen", "std_reward", "longer_wins_accuracy"):
        assert saved[name] == pytest.approx(expected[name], abs=1e-5), name
    assert saved["audit"]["kept"] == 6


@pytest.mark.parametrize("options", [[], ["--pack"]])
def test_report_score_and_rank_read_the_reward_at_the_gather(run, tmp_path, monkeypatch, options):
    row = toy_rows(1)[0]
    file = write_rows(tmp_path / "pairs.jsonl", [row])
    side = {"prompt": row["prompt"], "response": row["chosen"]}
    candidates = {"prompt": row["prompt"], "responses": [row["chosen"]]}

    def all_rewards():
        (scored,) = run_command("score", run, *options, stdin=json_lines(side))
        (ranked,) = run_command("rank", run, *options, stdin=json_lines(candidates))
        reported = run_report(run, file, *options)
        return np.array([scored["reward"], ranked["rewards"][0], reported["mean_chosen"]])

    true_gather, before = torch.gather, all_rewards()

    def one_token_earlier(hidden, dim, index):
        return true_gather(hidden, dim, index - 1)

    monkeypatch.setattr(torch, "gather", one_token_earlier)
    after = all_rewards()
    np.testing.assert_allclose(after, after[0], atol=1e-5)
    assert (np.abs(after - before) > 1e-4).all(), "a reward that does not come from the gather"


def test_bfloat16_is_near_float32_and_not_it(run):
    side = json_lines({"prompt": "q", "response": "the cat"})
    (exact,) = run_command("score", run, stdin=side)
    (rounded,) = run_command("score", run, "--bf16", stdin=side)
    difference = abs(exact["reward"] - rounded["reward"])
    assert difference > 0, "without --bf16 it computes in bfloat16 too, or with it in float32"
    assert difference < 0.2


# ---------------------------------------------------------------- score and rank


def test_rows_come_back_in_order_with_all_fields_and_all_digits(run, tmp_path):
    rows = [{"id": i, "note": {"é": [i]}, "prompt": "q", "response": "word " * (1 + 7 * i % 11)}
            for i in range(600)]
    scored = run_command("score", run, "--input", write_rows(tmp_path / "in.jsonl", rows))
    rewards = [row.pop("reward") for row in scored]
    assert scored == rows
    exact = score(RewardModel.from_pretrained(run), rows[:20])
    assert rewards[:20] == pytest.approx(exact, abs=1e-5)
    assert all(float(np.float32(reward)) == reward for reward in rewards), "digits are missing"


def test_the_scored_token_is_the_end_token(run):
    stdin = '\ufeff{"id": "\\ud800", "prompt": "q", "response": "a"}\n'  # Windows begins with a BOM
    (row,) = run_command("score", run, "--show-token", stdin=stdin)
    assert row["scored_token"]["token"] == "</s>" and row["scored_token"]["id"] == 2
    rendered = tiny_tokenizer(bos=True).encode(["<s>User: q\nAssistant: a</s>"])[0]
    assert row["scored_token"]["position"] == len(rendered) - 1, "the end token is the last one"
    assert row["id"] == "\ud800", "a field that is not read comes back as it was"


def test_candidates_are_ranked_after_the_same_prompt_also_where_it_is_shortened(run):
    # The long candidate leaves less room for the prompt: the short one gets the shorter prompt too.
    prompt, responses = " ".join(f"word{i}" for i in range(60)), ["the cat " * 12, "dog"]
    stdin = json_lines({"prompt": prompt, "responses": responses})
    status, out, err = command(evaluation.main, "rank", run, stdin=stdin)
    assert status == 0 and err.splitlines()[-1] == "1 row: the prompt was shortened to fit"
    row = {"prompt": prompt, "chosen": responses[0], "rejected": responses[1]}
    examples = examples_from([row], tiny_tokenizer(bos=True), 256)
    assert max(map(len, examples[0].sequences)) == 256
    model, ranked = RewardModel.from_pretrained(run), json.loads(out)
    (expected,) = score_examples(model, examples, batch_function(False), 0)
    rewards = dict(zip(ranked["responses"], ranked["rewards"]))
    assert rewards == pytest.approx(dict(zip(responses, expected.tolist())), abs=1e-5)


def test_a_prompt_that_is_too_long_loses_its_beginning_and_is_counted(run):
    model = RewardModel.from_pretrained(run)
    long, short = ({"prompt": "begin " * n + "end", "response": "a"} for n in (400, 300))
    assert score(model, [long]) == pytest.approx(score(model, [short]), abs=1e-5)
    status, _, err = command(evaluation.main, "score", run, stdin=json_lines(long, short))
    assert status == 0 and err.splitlines()[-1] == "2 rows: the prompt was shortened to fit"
    with pytest.raises(DataError, match="^row 1: .* 256"):
        score(model, [{"prompt": "q", "response": "word " * 300}])


@pytest.mark.parametrize("more", [
    {"response": "zzz"}, {"chosen": "x", "rejected": "y"}, {"text": "a note"}, {"scores": [1]},
    {"ranks": [1, None, 2]},
])
def test_rank_scores_the_responses_whatever_else_a_row_has(run, more):
    row = {"prompt": "q", "responses": ["the cat", "dog"]}
    (plain,) = run_command("rank", run, stdin=json_lines(row))
    (ranked,) = run_command("rank", run, stdin=json_lines(row | more))
    assert ranked == plain | more, "another field was scored, and not `responses`"


def test_best_of_n_writes_the_winner_and_equal_candidates_keep_their_order(run):
    (row,) = run_command("rank", run, stdin=json_lines({"prompt": "q", "responses": ["same"] * 3}))
    assert row["order"] == [0, 1, 2]
    row = {"id": 7, "prompt": "q", "responses": ["the cat", "sat on", "dog"]}
    (ranked,) = run_command("rank", run, stdin=json_lines(row))
    (best,) = run_command("rank", run, "--best", stdin=json_lines(row))
    assert best == {"id": 7, "prompt": "q", "response": ranked["responses"][0],
                    "reward": ranked["rewards"][0], "index": ranked["order"][0]}


# ---------------------------------------------------------------- invalid input: one line, status 2


@pytest.mark.parametrize("name, line, message", [
    ("score", "{", "not JSON"),
    ("score", "[1]", "not a JSON object"),
    ("score", '{"prompt": "q", "response": " "}', "empty"),
    ("score", '{"prompt": "q", "response": {"role": "user", "content": "a"}}', "field 'response'"),
    ("score", '{"prompt": "\\ud800", "response": "a"}', "field 'prompt' .* surrogate"),
    ("score", '{"prompt": "q"}', "no "),
    ("score", '{"prompt": "q", "chosen": "a", "rejected": "b"}', "several responses"),
    ("rank", '{"prompt": "q"}', "no .*chosen.*responses"),
    ("rank", '{"prompt": "q", "responses": []}', ""),
    ("rank", '{"prompt": "q", "responses": ["a", ""]}', "empty"),
    ("rank", '{"prompt": "q", "responses": ["a", 5]}', r"field 'responses\[1\]'"),
])
def test_a_bad_row_is_one_line_and_exit_status_2(run, name, line, message):
    assert re.search(f"standard input:1: .*{message}", refusal(name, run, stdin=line + "\n"))


def test_a_bad_pair_stops_a_report_or_is_counted(run, tmp_path):
    file = write_rows(tmp_path / "in.jsonl", [*toy_rows(2), {"prompt": "q", "chosen": "a"}])
    assert f"{file}:3: " in refusal("report", run, "--data", file)
    assert run_report(run, file, "--skip-bad-rows")["audit"]["left_out"]["malformed"] == 1


def test_a_report_does_not_overwrite_its_data_and_names_a_file_without_pairs(run, tmp_path):
    file = write_rows(tmp_path / "in.jsonl", toy_rows(2))
    before = file.read_text()
    assert str(file) in refusal("report", run, "--data", file, "--output", file)
    assert file.read_text() == before
    empty = write_rows(tmp_path / "empty.jsonl", [])
    status, _, err = command(evaluation.main, "report", run, "--data", empty)
    assert status == 2 and err.splitlines()[-1] == f"eval.py: no rows in {empty}"


@pytest.mark.parametrize("option", ["--output", "--predictions"])
@pytest.mark.parametrize("name", ["rows/a.jsonl", "run/model.safetensors", "run/config.json"])
def test_a_report_overwrites_only_reports(run, tmp_path, option, name):
    (tmp_path / "rows").mkdir()
    write_rows(tmp_path / "rows" / "a.jsonl", toy_rows(4))
    copy = copy_run(run, tmp_path / "run")
    before = (tmp_path / name).read_bytes()
    args = ["report", copy, "--data", tmp_path / "rows", option]
    assert f"{tmp_path / name} is there, and no earlier report" in refusal(*args, tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    for _ in range(2):  # what a report wrote may be written again
        assert command(evaluation.main, *args, tmp_path / "mine.json")[0] == 0


def test_closed_streams_are_empty_ones(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    evaluation.open_streams()
    assert sys.stdin.read() == ""
    print("σ", file=sys.stdout)
    print("\udcff", file=sys.stderr)


@pytest.mark.parametrize("options, message", [
    (["--max-length", "9999"], "--max-length 9999.* 256 tokens"), (["--max-length", "0"], "0: "),
    (["--device", "abacus"], "--device abacus"), (["--input", "nowhere.jsonl"], "No such file"),
])
def test_options_without_a_meaning_are_one_line(run, options, message):
    assert re.search(message, refusal("score", run, *options))


@pytest.mark.parametrize("error", [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. No"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8143257993216 bytes"),
])
def test_too_little_memory_is_one_line_and_other_errors_are_not_hidden(run, monkeypatch, error):
    def greedy(*args, **inputs):
        raise error

    monkeypatch.setattr(RewardModel, "forward", greedy)
    line = refusal("score", run, stdin='{"prompt": "q", "response": "a"}\n')
    assert line.startswith("eval.py: out of memory (") and "--bf16" in line
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes"):
        command(evaluation.main, "score", run, stdin='{"prompt": "q", "response": "a"}\n')


def test_a_tokenizer_at_which_the_library_panics_is_named(run, tmp_path):
    broken = copy_run(run, tmp_path / "broken")
    content = json.loads((run / "tokenizer.json").read_text())
    content["model"]["continuing_subword_prefix"] = "longer than any token"
    (broken / "tokenizer.json").write_text(json.dumps(content))
    assert f"{broken}/tokenizer.json cannot be used" in refusal("score", broken)


def test_a_run_without_a_model_yet_is_said(run, tmp_path):
    stopped = copy_run(run, tmp_path / "stopped")
    (stopped / "options.json").write_text("{}")
    (stopped / "config.json").unlink()
    assert f"train_rm.py --resume {stopped}" in refusal("score", stopped)


@pytest.mark.parametrize("file, change", [
    ("config.json", None), ("tokenizer.json", None), ("model.safetensors", None),
    ("config.json", {"model_type": ["llama"]}), ("tokenizer_config.json", {"eos_token": 5}),
    ("tokenizer_config.json", {"model_max_length": "long"}),
    ("tokenizer_config.json", {"chat_template": "{{"}),
])
def test_a_broken_folder_is_one_line(run, tmp_path, file, change):
    broken = copy_run(run, tmp_path / "broken")
    (broken / file).unlink()
    if change:
        (broken / file).write_text(json.dumps(json.loads((run / file).read_text()) | change))
    assert str(broken) in refusal("score", broken)


@pytest.mark.parametrize("name", ["report", "score", "rank"])
def test_broken_weights_are_refused_and_not_reported(run, tmp_path, name):
    broken = copy_run(run, tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    state["score.weight"][:] = math.nan
    save_file(state, broken / "model.safetensors")
    file = write_rows(tmp_path / "in.jsonl", toy_rows(2))
    row = {"score": {"response": "a"}, "rank": {"responses": ["a", "b"]}, "report": {}}[name]
    options = ["--data", file] if name == "report" else []
    stdin = json_lines({"prompt": "q"} | row)
    status, out, err = command(evaluation.main, name, broken, *options, stdin=stdin)
    assert (status, out) == (2, "") and "finite number" in err.splitlines()[-1], err


def test_a_text_that_is_no_row_is_refused_in_one_line():
    with pytest.raises(DataError, match="row 1: not an object such as"):
        score(tiny_model(), ["It is green."], tiny_tokenizer())


def test_a_tokenizer_of_another_model_is_noticed():
    row = {"prompt": "q", "response": "the cat sat on the mat"}
    with pytest.raises(DataError, match="row 1: .* beyond the model's vocabulary of 100"):
        score(tiny_model(vocab_size=100), [row], tiny_tokenizer())
    with pytest.raises(DataError, match="row 1: token id 100 is beyond the model's vocabulary of"):
        check_ids([np.array([99, 100])], tiny_model(vocab_size=100), "row 1")
        pytest.fail("ids are counted from 0: with 100 tokens, 99 is the last")
    check_ids([np.array([99])], tiny_model(vocab_size=100), "row 1")


def test_a_report_with_the_tokenizer_of_another_model_is_refused(tmp_path):
    run = save_run(tmp_path / "run", tiny_model(vocab_size=100), tiny_tokenizer())
    data = write_rows(tmp_path / "d.jsonl", toy_rows(2))
    status, out, err = command(evaluation.main, "report", run, "--data", data)
    assert (status, out) == (2, ""), "a report was made of ids that mean other words"
    assert "beyond the model's vocabulary of 100" in err.splitlines()[-1]


def test_a_row_of_training_is_ranked_with_all_turns_of_its_answers(run):
    turns = [{"role": "assistant", "content": "look"}, {"role": "user", "content": "and?"},
             {"role": "assistant", "content": "the cat"}]
    row = {"prompt": "q", "chosen": turns, "rejected": [{"role": "assistant", "content": "dog"}]}
    (ranked,) = run_command("rank", run, stdin=json_lines(row))
    for answer in (turns, "dog"):
        assert answer in ranked["responses"], "an answer lost some of its turns, or its form"


def test_what_happened_to_the_texts_is_said_at_the_end(run):
    stdin = json_lines({"prompt": "q", "response": "a </s> b"})
    status, _, err = command(evaluation.main, "score", run, stdin=stdin)
    assert status == 0
    assert "1 row: a text holds special tokens" in err, "score says nothing of an odd text"


def test_the_commands_work_from_a_shell_that_is_not_utf8(run, tmp_path):
    file = write_rows(tmp_path / "in.jsonl", toy_rows(2))
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    arguments = [sys.executable, ROOT / "eval.py", "report", run, "--data", file]
    done = subprocess.run(arguments, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "σ(|gap|)" in done.stdout.decode("utf-8"), "the table needs UTF-8"


def test_a_row_is_written_at_once(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written))
    evaluation.write_row({"id": 1}, {"reward": 0.5}, types.SimpleNamespace(notes={}))
    assert written.getvalue(), "it stays in a buffer, and the other end of a pipe waits for it"


def test_a_row_in_an_open_pipe_is_answered_before_the_next_one_comes(run):
    settings = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    settings["env"] = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    program = [sys.executable, ROOT / "eval.py", "score", run]
    with subprocess.Popen(program, text=True, **settings) as process:
        watchdog = threading.Timer(30, process.kill)  # the next line would wait for ever
        watchdog.daemon = True
        watchdog.start()
        for response in ("the cat", "the dog"):
            process.stdin.write(json_lines({"prompt": "q", "response": response}))
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, "no answer: is a row written at once, or kept in a buffer?"
            answer = json.loads(line)
            assert answer["response"] == response and math.isfinite(answer["reward"])
        process.stdin.close()
        assert process.wait(timeout=60) == 0
        watchdog.cancel()


def test_a_bad_row_gets_no_reward_and_a_reason_and_the_others_get_theirs(run):
    rows = [
        {"prompt": "q", "response": "the cat"},
        {"prompt": "q", "response": "word " * 300},
        {"prompt": "q", "response": "the dog", "images": ["cat.png"]},
        {"prompt": "q", "response": "the dog"},
    ]
    status, out, err = command(
        evaluation.main, "score", run, "--skip-bad-rows", stdin=json_lines(*rows)
    )
    scored = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and len(scored) == len(rows), "rows were dropped"
    assert [row["reward"] is None for row in scored] == [False, True, True, False]
    assert "too long" in scored[1]["reason"] and "images" in scored[2]["reason"]
    assert err.splitlines()[-1] == "2 rows: no reward, for the reason beside it"
    status, out, err = command(evaluation.main, "score", run, stdin=json_lines(*rows))
    assert status == 2 and "input:2: too long" in err
    assert [json.loads(line) for line in out.splitlines()] == scored[:1], "rewards were lost"


def test_under_torchrun_the_commands_are_refused_in_one_line(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "without torchrun" in refusal("score", run, stdin="")


@pytest.mark.parametrize("row", [
    {"query": "q", "good": "the cat", "bad": "the dog"},
    {"query": "q", "good": "the cat", "bad": "the dog", "judge": "somebody"},
])
def test_fields_of_other_names_can_be_named(run, tmp_path, row):
    names = ["--prompt-field", "query", "--chosen-field", "good", "--rejected-field", "bad"]
    file = write_rows(tmp_path / "named.jsonl", [row])
    native = write_rows(
        tmp_path / "native.jsonl", [{"prompt": "q", "chosen": "the cat", "rejected": "the dog"}]
    )
    named, plain = run_report(run, file, *names), run_report(run, native)
    assert named["mean_margin"] == plain["mean_margin"]
    unread = [note for note in named["audit"]["notes"] if "judge" in note]
    assert len(unread) == ("judge" in row), "fields that nobody read are listed"


def test_rank_moves_scores_and_ranks_with_their_responses(run):
    row = {"prompt": "q", "responses": ["dog", "the cat"], "scores": [1, 2], "ranks": [2, 1]}
    turned = {name: value[::-1] for name, value in row.items()}  # one of the two is sorted
    scores = dict(zip(row["responses"], row["scores"]))
    ranks = dict(zip(row["responses"], row["ranks"]))
    for ranked in run_command("rank", run, stdin=json_lines(row, turned)):
        message = "responses were sorted, and their labels stayed: they are those of other answers"
        assert dict(zip(ranked["responses"], ranked["scores"])) == scores, message
        assert dict(zip(ranked["responses"], ranked["ranks"])) == ranks, message


def test_a_text_beside_a_response_is_not_what_is_scored(run):
    row = {"prompt": "q", "response": "the cat"}
    (plain,) = run_command("score", run, stdin=json_lines(row))
    (beside,) = run_command("score", run, stdin=json_lines(row | {"text": "a note"}))
    assert beside["reward"] == plain["reward"]
    assert "chosen" in refusal("score", run, stdin=json_lines({"prompt": "q", "text": "x y"}))
