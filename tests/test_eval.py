"""The report's figures against independent computations, and the three commands as a user runs them."""
import contextlib
import io
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, save_run, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file

import eval as evaluation
from data import DataError, encode_preferences, parse_preference, toy_preferences
from eval import best_wins, bootstrap_interval, by_length, calibration, describe, describe_parts, learning_curve, report, score, score_pairs, score_sequences, within_group_correlation, worst_mistakes
from model import RewardModel


def some_pairs(n=10, gold=False):
    rows = list(toy_preferences(n, seed=3, pairs_per_prompt=3))
    if not gold:
        rows = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in rows]
    return encode_preferences([parse_preference(r) for r in rows], tiny_tokenizer(), 128)[0], rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("run"), tiny_model(), tiny_tokenizer(bos=True), max_length=256)


def command(*args, stdin=""):
    """eval.py's command line in this process (starting Python and torch anew takes seconds): status, stdout, stderr."""
    out, err, before = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(stdin)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = evaluation.main([str(a) for a in args])
    except SystemExit as e:  # argparse
        status = e.code
    finally:
        sys.stdin = before
    return status, out.getvalue(), err.getvalue()


def test_the_command_works_from_a_shell_too(run):
    done = subprocess.run([sys.executable, str(ROOT / "eval.py"), "score", str(run)], capture_output=True, text=True,
                          input='{"prompt": "q", "response": "a"}\n{"prompt": "q"}\n')
    assert done.returncode == 2 and "standard input:2: needs messages" in done.stderr and "Traceback" not in done.stderr


# ---------------------------------------------------------------- figures


def test_every_figure_agrees_with_a_computation_by_hand():
    pairs, _ = some_pairs(10)
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(10, 2)).astype(np.float32)
    rewards[3] = 0.5  # a tie
    result = report(rewards, pairs)
    gaps = rewards[:, 0].astype(np.float64) - rewards[:, 1]
    lengths = pairs.lengths()
    right = np.where(gaps > 0, 1.0, np.where(gaps == 0, 0.5, 0.0))
    longer = lengths[:, 0] - lengths[:, 1]
    assert result["pairs"] == 10 and result["ties"] == 1 and result["prompts"] == 4
    assert result["accuracy"] == pytest.approx(right.mean())
    assert result["loss"] == pytest.approx(np.logaddexp(0, -gaps).mean(), rel=1e-6)
    assert result["loss_of_a_coin"] == math.log(2)
    assert result["mean_margin"] == pytest.approx(gaps.mean(), rel=1e-5)
    assert result["mean_chosen"] - result["mean_rejected"] == pytest.approx(gaps.mean(), rel=1e-5)
    assert result["longer_wins_accuracy"] == pytest.approx(np.where(longer > 0, 1.0, np.where(longer == 0, 0.5, 0.0)).mean())
    assert result["accuracy_where_chosen_is_shorter"] == pytest.approx(right[longer < 0].mean())
    assert result["pairs_where_chosen_is_shorter"] == (longer < 0).sum() > 0


def test_a_response_in_several_pairs_counts_once_in_the_mean_of_all_rewards():
    pairs, _ = encode_preferences([parse_preference({"prompt": "q", "chosen": ["a"], "rejected": ["b", "c", "d"]})], tiny_tokenizer(), 99)
    result = report(np.array([[10, 0], [10, 1], [10, 5]], np.float32), pairs)
    assert (result["mean_reward"], result["std_reward"]) == (4.0, pytest.approx(np.std([10, 0, 1, 5])))
    assert result["pairs"] == 3 and result["mean_chosen"] == 10


def test_calibration_agrees_with_a_computation_by_hand():
    rng = np.random.default_rng(0)
    gaps = np.concatenate((rng.normal(1, 2, size=400), [0.0, 0.0, 30.0, -30.0]))
    result, bins = calibration(gaps), {}
    for gap in gaps:  # pair by pair
        sure = 1 / (1 + math.exp(-abs(gap)))
        right = 1.0 if gap > 0 else 0.5 if gap == 0 else 0.0
        bins.setdefault(min(int((sure - 0.5) * 20), 9), []).append((sure, right))
    expected = sum(abs(sum(s for s, _ in b) - sum(r for _, r in b)) for b in bins.values()) / len(gaps)
    assert result["ece"] == pytest.approx(expected, abs=1e-12)
    assert [row["pairs"] for row in result["table"]] == [len(bins[b]) for b in sorted(bins)]
    assert [row["accuracy"] for row in result["table"]] == pytest.approx([np.mean([r for _, r in bins[b]]) for b in sorted(bins)])
    losses = {t: np.logaddexp(0, -gaps / t).mean() for t in np.arange(0.5, 20, 0.01)}
    assert result["temperature"] == pytest.approx(min(losses, key=losses.get), abs=0.01)


@pytest.mark.parametrize("gaps", [[1.0, 2.0], [-1.0], [0.0, 0.0], [1.0, -1.0], [1.0, -3.0]])
def test_where_no_temperature_is_best_there_is_none(gaps):
    assert calibration(np.array(gaps))["temperature"] is None
    assert describe(report(np.array([[g, 0] for g in gaps], np.float32), some_pairs(len(gaps))[0]))


def test_temperature_undoes_a_scale():
    gaps = np.random.default_rng(1).normal(1, 2, size=500)
    assert calibration(3 * gaps)["temperature"] == pytest.approx(3 * calibration(gaps)["temperature"], rel=1e-6)


def test_the_gold_reward_is_calibrated_and_its_intervals_cover_the_ceiling_nineteen_times_in_twenty():
    covered, all_gaps, right_labels = 0, [], []
    for seed in range(100):
        gold = np.array([(r["gold_chosen"], r["gold_rejected"]) for r in toy_preferences(800, seed)])
        gaps = gold[:, 0] - gold[:, 1]
        all_gaps.append(gaps)
        right_labels.append(1 / (1 + np.exp(-np.abs(gaps))))
    ceiling = np.concatenate(right_labels).mean()
    for gaps in all_gaps:
        low, high = bootstrap_interval(np.sign(gaps) / 2 + 0.5, np.arange(800) // 8)
        covered += low <= ceiling <= high
    assert 88 <= covered <= 100
    assert calibration(np.concatenate(all_gaps))["ece"] < 0.005
    assert calibration(np.concatenate(all_gaps))["temperature"] == pytest.approx(1, abs=0.03)


def test_length_figures_agree_with_a_computation_by_hand():
    pairs, _ = some_pairs(11)
    rewards = np.random.default_rng(0).normal(size=(11, 2)).astype(np.float32)
    result, lengths = report(rewards, pairs), pairs.lengths()
    gaps = rewards[:, 0].astype(float) - rewards[:, 1]
    assert result["length_correlation"] == pytest.approx(np.corrcoef(rewards.ravel(), lengths.ravel())[0, 1], abs=1e-6)
    assert result["margin_length_correlation"] == pytest.approx(np.corrcoef(gaps, lengths[:, 0] - lengths[:, 1])[0, 1], abs=1e-6)
    longest = lengths.max(1)
    assert sum(b["pairs"] for b in result["by_length"]) == 11 and len(result["by_length"]) > 1
    for part, following in zip(result["by_length"], [*result["by_length"][1:], None]):
        inside = (longest >= part["from"]) & (longest <= part["to"])
        assert part["pairs"] == inside.sum() and part["accuracy"] == pytest.approx((gaps[inside] > 0).mean())
        assert following is None or part["to"] < following["from"]
    assert [b["pairs"] for b in by_length(np.ones(8), np.arange(8))] == [2, 2, 2, 2]
    assert by_length(np.array([1, 0, 1, 0]), np.full(4, 5)) == [{"from": 5, "to": 5, "pairs": 4, "accuracy": 0.5}]
    for name, values in (("margin", gaps), ("chosen", rewards[:, 0]), ("rejected", rewards[:, 1])):
        of = result["quantiles"][name]
        assert [of[q] for q in ("p5", "p25", "p50", "p75", "p95")] == pytest.approx(np.percentile(values, [5, 25, 50, 75, 95]).tolist())


def test_the_best_of_a_row_wins_alone_shares_or_loses():
    rows = [{"prompt": "q", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "S"}] * 4
    rows += [{"prompt": "q", "chosen": "a", "rejected": "b", "subset": "T"}, {"prompt": "q", "responses": ["x", "y", "z"], "ranks": [1, 1, 2], "subset": "T"}]
    pairs, _ = encode_preferences([parse_preference(r) for r in rows], tiny_tokenizer(), 99)
    gaps = np.array([1, 2, 3, 1, 0, 3, 0, 0, 2, 5, -1, 5, -1, 2, 2.0])
    wins = best_wins(gaps, pairs)
    assert wins[:5].tolist() == pytest.approx([1, 1 / 2, 1 / 3, 0, 0]) and np.isnan(wins[5])
    result = report(np.stack([gaps, np.zeros(15)], 1).astype(np.float32), pairs)
    assert (result["rows_with_a_best"], result["best_wins"]) == (5, pytest.approx((1 + 1 / 2 + 1 / 3) / 5))
    assert result["by_subset"]["S"] == {"pairs": 12, "accuracy": pytest.approx(9.5 / 12), "best_wins": pytest.approx((1 + 1 / 2 + 1 / 3) / 4)}
    assert result["by_subset"]["T"]["best_wins"] == 0
    text = describe_parts(result, [])
    assert f"{'their mean':<10}" in text and f"{((1 + 1 / 2 + 1 / 3) / 4 + 0) / 2:.3f}" in text


def test_equal_rewards_everywhere_are_all_ties_and_one_half():
    pairs, _ = some_pairs(7)
    result = report(np.ones((7, 2), np.float32), pairs)
    assert (result["accuracy"], result["ties"], result["accuracy_ci95"]) == (0.5, 7, [0.5, 0.5])
    assert result["loss"] == pytest.approx(math.log(2), rel=1e-6)


def test_one_pair_can_be_reported():
    pairs, _ = some_pairs(1)
    assert report(np.array([[2.0, 1.0]], np.float32), pairs)["accuracy"] == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_a_number_is_refused_not_counted(bad):
    pairs, _ = some_pairs(3)
    rewards = np.zeros((3, 2), np.float32)
    rewards[1, 0] = bad
    with pytest.raises(DataError, match="1 pairs have a reward that is not a finite number"):
        report(rewards, pairs)


def test_the_interval_of_independent_pairs_is_the_binomial_one():
    right = (np.random.default_rng(1).random(2000) < 0.7).astype(float)
    low, high = bootstrap_interval(right, np.arange(2000))
    half = 1.96 * math.sqrt(right.mean() * (1 - right.mean()) / 2000)
    assert low == pytest.approx(right.mean() - half, abs=0.004) and high == pytest.approx(right.mean() + half, abs=0.004)


def test_pairs_of_one_prompt_do_not_count_as_independent():
    group = np.repeat(np.arange(50), 40)
    right = np.repeat(np.random.default_rng(1).random(50) < 0.7, 40).astype(float)  # all 40 right or all wrong
    low, high = bootstrap_interval(right, group)
    assert high - low > 4 * (np.diff(bootstrap_interval(right, np.arange(2000)))[0])


def test_the_ceiling_is_what_the_gold_reward_scores_in_the_long_run():
    pairs, _ = some_pairs(4000, gold=True)
    result = report(pairs.gold.astype(np.float32), pairs)
    assert result["gold_correlation"] == pytest.approx(1.0)
    assert abs(result["accuracy"] - result["ceiling_accuracy"]) < 4 * math.sqrt(0.25 / 4000)
    assert 0.8 < result["ceiling_accuracy"] < 0.95


def test_correlation_within_prompts_ignores_what_a_prompt_adds_to_all_its_responses():
    rng = np.random.default_rng(0)
    gold, group = rng.normal(size=(60, 2)), np.repeat(np.arange(20), 3)
    noisy = gold + 0.5 * rng.normal(size=(60, 2))
    shifted = noisy + 100 * rng.normal(size=20)[group][:, None]
    within = within_group_correlation(shifted, gold, group)
    assert within == pytest.approx(within_group_correlation(noisy, gold, group), abs=1e-6)
    a, b = ((x.reshape(20, 6) - x.reshape(20, 6).mean(1, keepdims=True)).ravel() for x in (noisy, gold))
    assert within == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-9)


# ---------------------------------------------------------------- one scoring path


def test_scores_do_not_depend_on_how_texts_share_batches():
    model, rng = tiny_model(), np.random.default_rng(0)
    sequences = [rng.integers(3, 400, size=n).astype(np.int32) for n in (5, 90, 1, 33, 33, 60)]
    one_by_one = score_sequences(model, sequences, 0, tokens_per_batch=1)
    for budget in (64, 200, 10**6):
        np.testing.assert_allclose(score_sequences(model, sequences, 0, tokens_per_batch=budget), one_by_one, atol=1e-5)


def test_report_score_rank_and_the_model_itself_agree(run, tmp_path):
    model, tokenizer = RewardModel.from_pretrained(run).eval(), tiny_tokenizer(bos=True)
    _, rows = some_pairs(6)
    pairs, _ = encode_preferences([parse_preference(r) for r in rows], tokenizer, 256)
    by_pairs = score_pairs(model, pairs)
    by_call = score(model, [{"prompt": r["prompt"], "response": r[s]} for r in rows for s in ("chosen", "rejected")])
    np.testing.assert_allclose(by_pairs.ravel(), by_call, atol=1e-5)

    prompt, response = rows[0]["prompt"], rows[0]["chosen"]
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    forms = [{"prompt": prompt, "response": response}, {"messages": messages}, {"prompt": messages[:1], "response": messages[1]},
             {"text": tokenizer.render(messages)}, {"input_ids": pairs.sequence(0).tolist()}]
    np.testing.assert_allclose(score(model, forms), by_call[0], atol=1e-5)

    code, out, err = command("score", run, stdin="".join(json.dumps(f) + "\n" for f in forms))
    assert code == 0, err
    np.testing.assert_allclose([json.loads(line)["reward"] for line in out.splitlines()], by_call[0], atol=1e-5)
    both = {"prompt": prompt, "responses": [rows[0]["rejected"], response]}
    code, out, err = command("rank", run, stdin=json.dumps(both) + "\n")
    ranked = json.loads(out)
    assert dict(zip(ranked["responses"], ranked["rewards"])) == pytest.approx(
        {response: by_call[0], rows[0]["rejected"]: by_call[1]}, abs=1e-5)
    assert ranked["rewards"] == sorted(ranked["rewards"], reverse=True)
    assert [both["responses"][i] for i in ranked["order"]] == ranked["responses"]

    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    code, out, err = command("report", run, "--data", tmp_path / "pairs.jsonl", "--output", tmp_path / "report.json")
    assert code == 0, err
    saved = json.loads((tmp_path / "report.json").read_text())
    expected = report(by_pairs, pairs)
    assert saved.pop("accuracy_ci95") == expected.pop("accuracy_ci95")
    flat = {k: v for k, v in expected.items() if not isinstance(v, (dict, list))}
    assert {k: saved[k] for k in flat} == pytest.approx(flat, abs=1e-5)
    assert json.loads(json.dumps(expected)).keys() <= saved.keys()
    assert "accuracy" in out and "6 pairs read = 6 kept" in err


REPORT_KEYS = {"pairs", "accuracy", "ties", "accuracy_ci95", "loss", "mean_margin", "mean_chosen", "mean_rejected",
               "longer_wins_accuracy", "accuracy_where_chosen_is_shorter"}


def test_the_report_has_the_keys_other_tools_rely_on():
    pairs, _ = some_pairs(5)
    assert REPORT_KEYS <= report(np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32), pairs).keys()


def test_predictions_and_mistakes_name_their_rows_and_hold_what_the_report_is_made_of(run, tmp_path):
    _, rows = some_pairs(8)
    rows = [row | {"id": f"p{i}", "source": "ab"[i % 2]} for i, row in enumerate(rows)]
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    code, out, err = command("report", run, "--data", *files, "--output", tmp_path / "r.json", "--predictions", tmp_path / "p.jsonl")
    assert code == 0, err
    both, predicted = json.loads((tmp_path / "r.json").read_text()), [json.loads(line) for line in open(tmp_path / "p.jsonl")]
    assert [r["data"] for r in both] == [str(f) for f in files] and both[0]["accuracy"] == both[1]["accuracy"]
    assert len(predicted) == 16 and [p["id"] for p in predicted[:8]] == [r["id"] for r in rows]
    low, high = both[0]["accuracy_ci95"]
    assert all(figure in out.splitlines()[-1] for figure in (str(files[1]), f" {both[1]['accuracy']:.3f} ", f"{low:.3f} to {high:.3f}",
                                                             f"{both[1]['loss']:.4f}", f"{both[1]['longer_wins_accuracy']:.3f}"))
    assert predicted[9]["where"] == f"{files[1]}:2" and predicted[9]["source"] == "b"
    assert all(token["token"] == "</s>" for p in predicted for token in p["scored_tokens"])
    gaps = np.array([p["chosen"] - p["rejected"] for p in predicted[:8]])
    assert both[0]["accuracy"] == (gaps > 0).mean() and both[0]["by_source"]["a"]["accuracy"] == (gaps[::2] > 0).mean()
    wrong = sorted((g, i) for i, g in enumerate(gaps) if g < 0)[:3]
    assert [m["where"] for m in both[0]["mistakes"]] == [predicted[i]["where"] for _, i in wrong]
    for mistake, (gap, i) in zip(both[0]["mistakes"], wrong):
        assert mistake["margin"] == pytest.approx(gap) and rows[i]["prompt"] in mistake["prompt"]
        assert all(mistake[side].strip() == rows[i][side] for side in ("chosen", "rejected"))
        assert mistake["where"] in out
    exact = score(RewardModel.from_pretrained(run).eval(), [{"prompt": r["prompt"], "response": r["chosen"]} for r in rows])
    assert [p["chosen"] for p in predicted[:8]] == pytest.approx(exact, abs=1e-5)


def test_a_killed_run_goes_on_with_append_and_loses_and_doubles_nothing(run, tmp_path):
    rows = [{"id": i, "prompt": "q", "response": "word " * (1 + i % 7)} for i in range(1300)]
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps(r) + "\n" for r in rows))  # blank lines too
    whole, args = tmp_path / "whole.jsonl", ["score", run, "--input", tmp_path / "in.jsonl", "--output"]
    assert command(*args, whole)[0] == 0
    lines = whole.read_bytes().splitlines(True)
    for kept in (b"", b"".join(lines[:512]), b"".join(lines[:700]) + lines[700][:9], b"".join(lines)):
        (tmp_path / "out.jsonl").write_bytes(kept)
        code, _, err = command(*args, tmp_path / "out.jsonl", "--append")
        assert code == 0, err
        got = [json.loads(line) for line in open(tmp_path / "out.jsonl", encoding="utf-8")]
        assert [r["id"] for r in got] == list(range(1300))
        assert [r["reward"] for r in got] == pytest.approx([json.loads(line)["reward"] for line in lines], abs=1e-5)
    assert command("score", run, "--append")[0] == 2


def test_append_leaves_files_alone_that_it_did_not_write(run, tmp_path):
    line = '{"prompt": "q", "response": "a"}\n'
    (tmp_path / "in.jsonl").write_text(line * 3)
    scored = '{"prompt": "q", "response": "a", "reward": 1.0}\n'
    for content, message in [
        ("my notes", "holds something else"), ("other\ncontent\n", "holds something else"), ("{}\n", "holds something else"),
        (scored.replace("q", "other"), "row 1 of .* is not row 1 of the input"), (scored * 4, "row 4 of .* is not row 4 of the input"),
    ]:
        (tmp_path / "out.jsonl").write_text(content)
        code, out, err = command("score", run, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", "--append")
        assert code == 2 and re.search(message, err), err
        assert (tmp_path / "out.jsonl").read_text() == content
    code, _, err = command("score", run, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "in.jsonl", "--append")
    assert code == 2 and "is the input too" in err and (tmp_path / "in.jsonl").read_text() == line * 3


def test_rank_goes_on_with_append_too(run, tmp_path):
    rows = [{"id": i, "prompt": "q", "responses": [f"the cat {i}", "dog"]} for i in range(5)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    args = ["rank", run, "--input", tmp_path / "in.jsonl", "--output"]
    assert command(*args, tmp_path / "whole.jsonl")[0] == 0
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(True)
    (tmp_path / "out.jsonl").write_text("".join(lines[:3]) + lines[3][:7])
    assert command(*args, tmp_path / "out.jsonl", "--append")[0] == 0
    got, whole = ([json.loads(line) for line in text.splitlines()] for text in ((tmp_path / "out.jsonl").read_text(), "".join(lines)))
    rewards = [[row.pop("rewards") for row in rows] for rows in (got, whole)]
    assert got == whole and np.allclose(*rewards, atol=1e-5)  # batches of other sizes round otherwise


def test_outputs_that_would_overwrite_each_other_or_the_data_are_refused(run, tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in some_pairs(4)[1]))
    before = (tmp_path / "in.jsonl").read_text()
    for options in (["--output", "in.jsonl"], ["--predictions", "in.jsonl"], ["--output", "x", "--predictions", "x"]):
        paths = [o if o.startswith("--") else tmp_path / o for o in options]
        code, out, err = command("report", run, "--data", tmp_path / "in.jsonl", *paths)
        assert (code, out) == (2, "") and "each has to be a file of its own" in err
    assert (tmp_path / "in.jsonl").read_text() == before


def test_a_mistake_in_the_last_file_costs_no_work(run, tmp_path, monkeypatch):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in some_pairs(4)[1]))
    (tmp_path / "empty.jsonl").write_text("")
    monkeypatch.setattr(evaluation, "score_pairs", lambda *args, **options: pytest.fail("scored before all files were read"))
    code, out, err = command("report", run, "--data", tmp_path / "in.jsonl", tmp_path / "empty.jsonl")
    assert (code, out) == (2, "") and "empty.jsonl: no pairs left" in err


def test_a_terminal_that_is_not_utf8_ends_no_report(run, tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r | {"source": "a\n\x1b[31m"}) + "\n" for r in some_pairs(4)[1]))
    done = subprocess.run([sys.executable, str(ROOT / "eval.py"), "report", str(run), "--data", str(tmp_path / "in.jsonl")],
                          capture_output=True, env=os.environ | {"PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0 and "σ(|gap|)" in done.stdout.decode("utf-8"), done.stderr
    assert b"\x1b" not in done.stdout and b'"a\\n\\u001b[31m"' in done.stdout


@pytest.mark.parametrize("options", [[], ["--text"]])
def test_bytes_that_are_not_utf8_are_one_line(run, tmp_path, options):
    (tmp_path / "bad.txt").write_bytes(b'{"text": "hel\xfflo"}\n')
    code, out, err = command("score", run, "--input", tmp_path / "bad.txt", *options)
    assert (code, out) == (2, "") and "bad.txt: not UTF-8 text" in err and err.count("\n") == 1
    done = subprocess.run([sys.executable, str(ROOT / "eval.py"), "score", str(run), *options], capture_output=True,
                          input=b'{"text": "hel\xfflo"}\n')
    assert done.returncode == 2 and done.stderr == b"eval.py: standard input: not UTF-8 text (invalid start byte)\n"


def test_lines_of_plain_text_are_scored_as_whole_texts(run):
    code, out, err = command("score", run, "--text", stdin="\ufeffthe cat\r\n\n  {sat}\n")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [r["text"] for r in rows] == ["the cat", "  {sat}"], err
    exact = score(RewardModel.from_pretrained(run).eval(), [{"text": r["text"]} for r in rows])
    assert [r["reward"] for r in rows] == pytest.approx(exact, abs=1e-5)


def test_best_of_n_writes_the_winner(run):
    row = {"id": 7, "prompt": "q", "responses": ["the cat", "sat on", "dog"]}
    ranked = json.loads(command("rank", run, stdin=json.dumps(row) + "\n")[1])
    code, out, err = command("rank", run, "--best", stdin=json.dumps(row) + "\n")
    assert code == 0 and json.loads(out) == {"id": 7, "prompt": "q", "response": ranked["responses"][0],
                                             "reward": ranked["rewards"][0], "index": ranked["order"][0]}, err


def test_pictures_without_matplotlib_are_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in some_pairs(4)[1]))
    code, out, err = command("report", run, "--data", tmp_path / "in.jsonl", "--plot", tmp_path / "x.png")
    assert (code, out) == (2, "") and err == "eval.py: --plot needs matplotlib, an optional extra: pip install matplotlib\n"
    assert not (tmp_path / "x.png").exists()


class Canvas:
    """Stands in for matplotlib's axes and figures: notes what it is told to draw."""

    def __init__(self):
        self.said, self.saved = [], None

    def __getattr__(self, name):
        return lambda *args, **settings: self.said.append((name, args, settings))

    def savefig(self, file, format, **settings):
        self.format = format
        file.write(b"picture")


def test_pictures_draw_the_numbers_of_the_report(monkeypatch, tmp_path):
    pairs, _ = some_pairs(30, gold=True)
    rewards = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    result, axes = report(rewards, pairs), [Canvas() for _ in range(6)]
    figure, grid = Canvas(), np.empty(6, dtype=object)
    for i, axis in enumerate(axes):
        grid[i] = axis
    monkeypatch.setattr(evaluation, "pyplot", lambda: type("", (), {"subplots": lambda *a, **k: (figure, grid)}))
    metrics = [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6}, {"step": 2, "eval_loss": 0.65}]
    evaluation.plot(str(tmp_path / "p.png"), rewards, pairs, result, metrics)
    assert (tmp_path / "p.png").read_bytes() == b"picture"
    drawn = lambda i, what: [args for name, args, _ in axes[i].said if name == what]
    assert [a[0].tolist() for a in drawn(0, "hist")] == [rewards[:, 0].tolist(), rewards[:, 1].tolist()]
    assert drawn(1, "plot")[1][:2] == ([b["confidence"] for b in result["calibration"]["table"]], [b["accuracy"] for b in result["calibration"]["table"]])
    assert drawn(2, "scatter")[1][0].tolist() == pairs.lengths()[:, 1].tolist()
    assert drawn(3, "scatter")[0][0].tolist() == pairs.gold.tolist()
    assert drawn(3, "scatter")[0][1].mean() == pytest.approx(pairs.gold.mean(), abs=1e-5)
    assert figure.format == "png"
    assert drawn(4, "plot")[0][:2] == ([1, 2], [0.7, 0.6]) and (math.log(2),) in drawn(4, "axhline")
    assert drawn(5, "set_axis_off")
    for i in range(5):  # every picture says what its axes are
        assert {"title", "xlabel", "ylabel"} <= next(settings for name, _, settings in axes[i].said if name == "set").keys()


def test_ties_are_no_mistakes():
    pairs, _ = some_pairs(3)
    assert worst_mistakes(np.zeros((3, 2), np.float32), pairs, tiny_tokenizer()) == []


def test_a_learning_curve_is_read_as_far_as_it_is_whole(tmp_path):
    assert learning_curve(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.7}\n{"loss": 2}\n{"step": 2, "loss": 0.6}\n{"step": 3, "lo')
    assert learning_curve(tmp_path) == [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6}]


def test_rows_come_back_in_order_with_all_their_fields_and_a_full_precision_reward(run, tmp_path):
    rows = [{"id": i, "note": {"é": [i]}, "prompt": "q", "response": "word " * (1 + (7 * i) % 11)} for i in range(600)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    code, out, err = command("score", run, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    assert (code, out) == (0, ""), err
    scored = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [{k: v for k, v in r.items() if k != "reward"} for r in scored] == rows
    exact = score(RewardModel.from_pretrained(run).eval(), rows[:20])
    assert [r["reward"] for r in scored[:20]] == pytest.approx(exact, abs=1e-5)
    assert all(float(np.float32(r["reward"])) == r["reward"] for r in scored)  # all digits of a float32, none rounded off


def test_the_scored_token_is_the_end_token(run):
    code, out, err = command("score", run, "--show-token", stdin='{"prompt": "q", "response": "a"}\n')
    assert json.loads(out)["scored_token"]["token"] == "</s>", err


def test_candidates_are_ranked_under_the_same_prompt_even_where_it_is_shortened(run):
    # 256 tokens: the long candidate leaves less room for the prompt, so the short one is read after the shorter prompt too.
    prompt, responses = " ".join(f"word{i}" for i in range(60)), ["the cat " * 12, "dog"]
    code, out, err = command("rank", run, stdin=json.dumps({"prompt": prompt, "responses": responses}) + "\n")
    row = {"prompt": prompt, "chosen": responses[0], "rejected": responses[1]}
    pairs, audit = encode_preferences([parse_preference(row)], tiny_tokenizer(bos=True), 256)
    assert audit["prompt_truncated"] == 1
    ranked = json.loads(out)
    rewards = dict(zip(ranked["responses"], ranked["rewards"]))
    expected = score_pairs(RewardModel.from_pretrained(run).eval(), pairs)[0]
    assert [rewards[r] for r in responses] == pytest.approx(expected.tolist(), abs=1e-5), err


def test_a_field_that_is_not_text_comes_back_as_it_was(run):
    code, out, err = command("score", run, stdin='\ufeff{"id": "\\ud800", "prompt": "q", "response": "a"}\n')
    assert code == 0 and json.loads(out)["id"] == "\ud800", err


def test_equal_candidates_keep_their_order(run):
    code, out, _ = command("rank", run, stdin='{"prompt": "q", "responses": ["same", "same", "same"]}\n')
    assert json.loads(out)["order"] == [0, 1, 2]


def test_a_too_long_prompt_is_shortened_and_a_too_long_text_refused(run):
    model = RewardModel.from_pretrained(run).eval()
    long, short = ({"prompt": "begin " * n + "end", "response": "a"} for n in (400, 300))
    assert score(model, [long]) == pytest.approx(score(model, [short]), abs=1e-5)
    with pytest.raises(DataError, match="row 1: .* do not fit into --max-length 256"):
        score(model, [{"text": "word " * 300}])


# ---------------------------------------------------------------- a user's mistakes: one line, exit status 2


@pytest.mark.parametrize("name, line, message", [
    ("score", "{", "standard input:1: not JSON"),
    ("score", "[1]", "standard input:1: not a JSON object"),
    ("score", '{"reply": "x"}', "standard input:1: needs messages, or prompt and response, or text, or input_ids (found: reply)"),
    ("score", '{"prompt": "q", "response": ""}', "standard input:1: field 'response' does not end with something said"),
    ("score", '{"messages": [{"role": "assistant", "content": " "}]}', "field 'messages' does not end with something said"),
    ("score", '{"prompt": "q", "response": [{"role": "user", "content": "a"}]}', "field 'response' does not end with"),
    ("score", '{"text": "\\ud800"}', "field 'text' holds half of a surrogate pair"),
    ("score", '{"text": 3}', "standard input:1: field 'text'"),
    ("score", '{"input_ids": [1, 400]}', "standard input:1: field 'input_ids' is not a non-empty list of token ids from 0 to 399"),
    ("score", '{"messages": [{"role": "user", "content": "q"}]}', "field 'messages' does not end with something said"),
    ("rank", '{"prompt": "q"}', "standard input:1: field 'responses' is not a non-empty list"),
    ("rank", '{"messages": [{"role": "assistant", "content": "x"}], "responses": ["a"]}', "already ends with a turn of the assistant"),
    ("rank", '{"responses": ["a"]}', "standard input:1: no field 'prompt' or 'messages'"),
    ("rank", '{"prompt": "q", "responses": ["a", ""]}', "standard input:1: response 2: field 'response' does not end"),
])
def test_a_bad_row_is_one_line_and_exit_status_2(run, tmp_path, name, line, message):
    code, out, err = command(name, run, "--output", tmp_path / "out.jsonl", stdin=line + "\n")
    assert code == 2 and message in err and err.count("\n") == 1 and "Traceback" not in err
    assert not list(tmp_path.iterdir())  # nothing half-written


def test_a_bad_folder_is_one_line_and_exit_status_2(run, tmp_path):
    code, _, err = command("score", tmp_path / "nowhere")
    assert code == 2 and "nowhere: no such folder" in err and err.count("\n") == 1
    (tmp_path / "tokenizerless").mkdir()
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "tokenizerless" / file).write_bytes((run / file).read_bytes())
    code, _, err = command("score", tmp_path / "tokenizerless")
    assert code == 2 and "tokenizer.json: No such file" in err and err.count("\n") == 1


@pytest.mark.parametrize("file, key, value", [
    ("config.json", "rope_scaling", 3), ("config.json", "model_type", ["llama"]), ("config.json", "layer_types", [["x"]]),
    ("config.json", "rope_theta", -1), ("config.json", "partial_rotary_factor", "half"), ("config.json", "head_dim", 1.5),
    ("tokenizer_config.json", "model_max_length", "long"), ("tokenizer_config.json", "model_max_length", -5),
    ("tokenizer_config.json", "chat_template", 5), ("tokenizer_config.json", "chat_template", "{{"),
    ("tokenizer_config.json", "chat_template", "{% for i in range(10**9) %}{% endfor %}"),
    ("tokenizer_config.json", "eos_token", 5), ("tokenizer_config.json", "bos_token", ["x"]),
])
def test_a_setting_of_the_wrong_kind_is_one_line(run, tmp_path, file, key, value):
    for source in run.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    (tmp_path / file).write_text(json.dumps(json.loads((run / file).read_text()) | {key: value}))
    code, out, err = command("score", tmp_path, stdin='{"prompt": "q", "response": "a"}\n')
    assert (code, out) == (2, "") and str(tmp_path) in err and err.count("\n") == 1, err


@pytest.mark.parametrize("options, message", [
    (["--max-length", "0"], "must be more than 0"), (["--max-length", "9999"], "more than the 256 tokens this model takes"),
    (["--tokens-per-batch", "0"], "must be more than 0"), (["--device", "abacus"], "--device abacus"),
    (["--output", "/nowhere/x.jsonl"], "/nowhere/x.jsonl: not a file in an existing folder"),
])
def test_options_without_a_meaning_are_one_line(run, options, message):
    code, out, err = command("score", run, *options)
    assert code == 2 and out == "" and message in err and "Traceback" not in err


def test_broken_weights_are_refused_not_reported(run, tmp_path):
    for file in run.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    state["score.weight"][:] = math.nan
    save_file(state, tmp_path / "model.safetensors")
    code, out, err = command("score", tmp_path, stdin='{"prompt": "q", "response": "a"}\n')
    assert code == 2 and out == "" and "the reward is nan" in err


def test_a_tokenizer_of_another_model_is_noticed(run, tmp_path):
    model = tiny_model(vocab_size=100)
    save_run(tmp_path, model, tiny_tokenizer())
    with pytest.raises(DataError, match="beyond the model's vocabulary of 100"):
        score(RewardModel.from_pretrained(tmp_path), [{"prompt": "q", "response": "the cat sat on the mat"}])
