"""What a long report adds: each figure against a computation by hand."""
import argparse
import json
import sys

import numpy as np
import pytest
from conftest import command, read_lines, save_run, tiny_model, tiny_tokenizer, write_rows

import eval as evaluation
from data import Audit, examples_of, parse_row
from eval import Scorer, all_pairs, report, score
from extras import plots, report_details, toy_world
from model import RewardModel


def examples_from(rows):
    parsed = [parse_row(row, f"f.jsonl:{i}") for i, row in enumerate(rows, 1)]
    return list(examples_of(parsed, tiny_tokenizer(), 128, Audit()))


def toy_rows(n):
    """Rows of the toy world with an id, two sources, and no true rewards."""
    rows = []
    for i, row in enumerate(toy_world.toy_rows(n, seed=3)):
        row = {field: row[field] for field in ("prompt", "chosen", "rejected")}
        rows.append(row | {"id": f"p{i}", "source": "ab"[i % 2]})
    return rows


def details(rewards, examples, **options):
    """The figures that are added, and what they are added to."""
    defaults = {"data": ["f"], "output": None, "predictions": None, "plot": None, "by": None}
    defaults["details"] = True
    args = argparse.Namespace(**defaults | options)
    scorer = Scorer(tiny_model(), tiny_tokenizer())
    figures = report(rewards, examples)
    return report_details.show(args, scorer, rewards, examples, figures), figures


def random_rewards(examples):
    rng = np.random.default_rng(0)
    return [rng.normal(size=len(e.sequences)).astype(np.float32) for e in examples]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("details") / "run"
    return save_run(folder, tiny_model(), tiny_tokenizer(bos=True), max_length=256)


# ---------------------------------------------------------------- figures


def test_quantiles_and_correlation_agree_with_a_computation_by_hand():
    examples = examples_from(toy_rows(11))
    rewards = random_rewards(examples)
    added, _ = details(rewards, examples)
    pairs = all_pairs(rewards, examples)
    gaps = pairs.r_chosen - pairs.r_rejected
    longer_by = pairs.tokens_chosen - pairs.tokens_rejected
    expected = np.corrcoef(gaps, longer_by)[0, 1]
    assert added["margin_length_correlation"] == pytest.approx(expected)
    all_values = {"margin": gaps, "chosen": pairs.r_chosen, "rejected": pairs.r_rejected}
    for name, values in all_values.items():
        expected = np.percentile(values, [5, 25, 50, 75, 95]).tolist()
        assert list(added["quantiles"][name].values()) == pytest.approx(expected), name
        assert list(added["quantiles"][name]) == ["p5", "p25", "p50", "p75", "p95"]


def test_the_quarters_by_length_hold_every_pair_once():
    examples = examples_from(toy_rows(40))
    rewards = random_rewards(examples)
    added, _ = details(rewards, examples)
    pairs = all_pairs(rewards, examples)
    longest = np.maximum(pairs.tokens_chosen, pairs.tokens_rejected)
    correct = pairs.r_chosen > pairs.r_rejected
    parts = added["by_length"]
    assert sum(part["pairs"] for part in parts) == 40 and len(parts) == 4
    for part, following in zip(parts, [*parts[1:], {"from": np.inf}]):
        inside = (longest >= part["from"]) & (longest <= part["to"])
        assert part["pairs"] == inside.sum()
        assert part["accuracy"] == pytest.approx(correct[inside].mean())
        assert part["to"] < following["from"], "pairs of one length are in two parts"


def test_pairs_of_equal_length_are_one_part():
    examples = examples_from([{"prompt": "q", "chosen": "a", "rejected": "b"}] * 4)
    tokens = len(examples[0].sequences[0])
    added, _ = details([np.array([1.0, r]) for r in (0, 0, 2, 1)], examples)
    part = {"from": tokens, "to": tokens, "pairs": 4, "accuracy": 0.625}  # a tie is half right
    assert added["by_length"] == [part]


def test_the_best_of_a_row_wins_alone_shares_or_loses(capsys):
    rows = [{"prompt": "q", "responses": ["b", "a", "c", "d"], "scores": [0, 1, 0, 0],
             "subset": "S"}] * 4  # the second one is the best
    rows += [{"prompt": "q", "chosen": "a", "rejected": "b", "subset": "T"}]
    rows += [{"prompt": "q", "responses": ["x", "y", "z"], "ranks": [1, 1, 2], "subset": "T"}]
    examples = examples_from(rows)
    rewards = [
        np.array([0, 1, -1, 0.5]),  # wins alone
        np.array([1, 1, 0, 0.5]),  # shares with one
        np.array([1, 1, 1, 0.5]),  # shares with two
        np.array([0, 1, 2, 0.5]),  # loses to one, beats two
        np.array([0, 2]),  # a pair, lost
        np.array([1, 1, 0]),  # two are best: such a row has no single best one
    ]
    added, _ = details(rewards, examples)
    shares = 1 + 1 / 2 + 1 / 3
    assert added["rows_with_a_best"] == 5
    assert added["best_wins"] == pytest.approx(shares / 5), "of m that share a win each has 1/m"
    of_s, of_t = added["by"]["subset"]["S"], added["by"]["subset"]["T"]
    assert of_s["pairs"] == 12 and of_s["best_wins"] == pytest.approx(shares / 4)
    assert of_s["accuracy"] == pytest.approx((3 + 2.5 + 2 + 2) / 12), "a tie counts half"
    assert of_t["pairs"] == 3 and of_t["best_wins"] == 0.0
    assert of_t["accuracy"] == pytest.approx(2 / 3)

    mean_line = [line for line in capsys.readouterr().out.splitlines() if "their mean" in line]
    accuracy, best = (of_s["accuracy"] + of_t["accuracy"]) / 2, (shares / 4 + 0) / 2
    assert mean_line[0].split()[:2] == [f"{accuracy:.3f}", f"{best:.3f}"], (
        "every subset counts the same in the mean, however many pairs it has"
    )


def test_rows_without_a_source_are_a_part_of_their_own(capsys):
    rows = toy_rows(6)
    del rows[1]["source"]
    rows[3]["source"], rows[5]["source"] = "", None
    examples = examples_from(rows)
    added, _ = details(random_rewards(examples), examples)
    by_source = added["by"]["source"]
    assert [by_source[name]["pairs"] for name in ("a", "(none)")] == [3, 3]
    assert "subset" not in added["by"] and "by subset" not in capsys.readouterr().out


def test_a_part_without_a_best_response_has_a_dash(capsys):
    rows = [{"prompt": "q", "responses": ["x", "y", "z"], "ranks": [1, 1, 2], "source": "tied"}]
    examples = examples_from(rows)
    added, _ = details([np.array([1, 1, 0])], examples)
    assert added["best_wins"] is None and added["rows_with_a_best"] == 0
    assert added["by"]["source"]["tied"] == {"pairs": 2, "accuracy": 1.0, "best_wins": None}
    assert "–" in capsys.readouterr().out


# ---------------------------------------------------------------- by any field


def language_rows():
    rows = toy_rows(12)
    for i, row in enumerate(rows):
        row["language"] = ["en", "de", 7, None][i % 4]
        row["about"] = {"code": i % 3 == 0, "topic": {"name": "ab"[i % 2]}}
        row["about.code"] = "beside"
    return rows


def test_by_splits_by_any_field_and_counts_rows_without_it():
    examples = examples_from(language_rows())
    rewards = random_rewards(examples)
    added, _ = details(rewards, examples, by=["language", "about.topic.name"])
    right = np.array([r[0] > r[1] for r in rewards])
    assert list(added["by"]) == ["language", "about.topic.name"]
    for number, name in enumerate(["en", "de", "7", "(none)"]):
        part = added["by"]["language"][name]
        assert part["pairs"] == 3 and part["accuracy"] == right[number::4].mean(), name
    assert added["by"]["about.topic.name"]["b"]["accuracy"] == right[1::2].mean()


def test_a_field_with_a_dot_in_its_name_comes_before_a_field_of_an_object():
    examples = examples_from(language_rows())
    added, _ = details(random_rewards(examples), examples, by=["about.code"])
    assert list(added["by"]["about.code"]) == ["beside"]
    rows = language_rows()
    for row in rows:
        del row["about.code"]
    examples = examples_from(rows)
    added, _ = details(random_rewards(examples), examples, by=["about.code"])
    pairs = {name: part["pairs"] for name, part in added["by"]["about.code"].items()}
    assert pairs == {"false": 8, "true": 4}


def test_by_prints_its_tables_without_the_others(capsys):
    examples = examples_from(language_rows())
    added, _ = details(random_rewards(examples), examples, by=["source"], details=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "by source" and len(lines) == 2 + 1 + 2 + 1
    mean = np.mean([part["accuracy"] for part in added["by"]["source"].values()])
    assert lines[-1].split() == [f"{mean:.3f}", f"{mean:.3f}", "their", "mean"]


@pytest.mark.parametrize("field", ["pairs", "accuracy", "best_wins", "length"])
def test_a_field_may_have_the_name_of_a_figure(field, capsys):
    rows = [row | {field: "x"} for row in toy_rows(4)]
    examples = examples_from(rows)
    added, _ = details(random_rewards(examples), examples, by=[field])
    assert added["by"][field]["x"]["pairs"] == 4 and len(added["by_length"]) > 1
    lines = capsys.readouterr().out.splitlines()
    line = lines[lines.index(f"by {field}") + 2]
    assert line.split()[0] == "4" and line.split()[-1] == "x"


def test_of_very_many_values_those_with_most_pairs_are_printed_and_the_others_counted(capsys):
    rows = toy_rows(70)
    for row in rows[:10]:
        row["id"] = "p69"  # ten pairs and its own
    examples = examples_from(rows)
    added, _ = details(random_rewards(examples), examples, by=["id"], details=False)
    out = capsys.readouterr().out
    assert len(added["by"]["id"]) == 60 and "and 10 values with fewer pairs" in out
    assert len(out.splitlines()) == 2 + 1 + 50 + 1 + 1
    assert [line.split()[0] for line in out.splitlines() if line.endswith("p69")] == ["11"]


@pytest.mark.parametrize("field", ["lang", "about.lang", "source.name", ""])
def test_a_field_that_no_row_has_is_one_line(run, tmp_path, field):
    file = write_rows(tmp_path / "in.jsonl", language_rows())
    options = ["--data", file, "--by", "language", field]
    status, _, err = command(evaluation.main, "report", run, *options)
    assert status == 2
    found = "found: prompt, chosen, rejected, id, source, language, about, about.code"
    line = f"eval.py: {file}: --by {field}: no row has this field ({found})"
    assert err.splitlines()[-1] == line


# ---------------------------------------------------------------- mistakes, tables


def test_the_mistakes_are_the_pairs_with_the_largest_wrong_gaps():
    rows = toy_rows(8)
    examples = examples_from(rows)
    rewards = random_rewards(examples)
    added, _ = details(rewards, examples)
    gaps = [float(r[0] - r[1]) for r in rewards]
    wrong = [i for i in np.argsort(gaps) if gaps[i] < 0]
    assert len(wrong) > 3
    assert [m["where"] for m in added["mistakes"]] == [f"f.jsonl:{i + 1}" for i in wrong[:3]]
    for mistake, i in zip(added["mistakes"], wrong):
        assert mistake["margin"] == pytest.approx(gaps[i])
        for field in ("prompt", "chosen", "rejected"):
            assert mistake[field] == rows[i][field]


def test_a_tie_is_no_mistake():
    examples = examples_from(toy_rows(3))
    added, _ = details([np.zeros(2)] * 3, examples)
    assert added["mistakes"] == []


def test_the_tables_show_the_figures_of_the_report(capsys):
    rows = toy_rows(30)
    rows[0]["source"] = "a\n\x1b[31m"
    examples = examples_from(rows)
    added, figures = details(random_rewards(examples), examples)
    out = capsys.readouterr().out
    for part in figures["calibration"]["table"] + added["by_length"]:
        cells = []
        for value in part.values():
            cells.append(f"{value:.3f}" if isinstance(value, float) else str(value))
        assert " ".join(cells) in " ".join(out.split()), part
    assert added["mistakes"][0]["where"] in out
    assert "\x1b" not in out, "a name in the data must not change the colour of the terminal"
    assert '"a\\n\\u001b[31m"' in out


def test_without_details_nothing_is_printed(capsys):
    examples = examples_from(toy_rows(4))
    added, _ = details(random_rewards(examples), examples, details=False)
    assert capsys.readouterr().out == "" and "by_length" in added


# ---------------------------------------------------------------- the command line


def test_predictions_hold_what_the_report_is_made_of(run, tmp_path):
    rows = toy_rows(8)
    files = [write_rows(tmp_path / f"{name}.jsonl", rows) for name in ("one", "two")]
    options = ["--output", tmp_path / "r.json", "--predictions", tmp_path / "p.jsonl"]
    (tmp_path / "p.jsonl").write_text('{"scored_tokens": "of an earlier report"}\n')
    status, _, err = command(evaluation.main, "report", run, "--data", *files, *options)
    assert status == 0, err
    reports = json.loads((tmp_path / "r.json").read_text())
    predicted = read_lines(tmp_path / "p.jsonl")
    assert len(predicted) == 16
    assert [line["id"] for line in predicted] == [row["id"] for row in rows] * 2
    assert predicted[9]["where"] == f"{files[1]}:2" and predicted[9]["source"] == "b"
    assert predicted[0]["pair"] == [0, 1]
    for line in predicted:
        assert [token["token"] for token in line["scored_tokens"]] == ["</s>", "</s>"]
    gaps = np.array([line["chosen"] - line["rejected"] for line in predicted[:8]])
    assert reports[0]["accuracy"] == (gaps > 0).mean() == reports[1]["accuracy"]
    assert reports[0]["by"]["source"]["a"]["accuracy"] == (gaps[::2] > 0).mean()
    chosen = [{"prompt": row["prompt"], "response": row["chosen"]} for row in rows]
    exact = score(RewardModel.from_pretrained(run), chosen)
    assert [line["chosen"] for line in predicted[:8]] == pytest.approx(exact, abs=1e-5)


def test_the_pairs_of_k_responses_name_the_responses(run, tmp_path):
    row = {"prompt": "q", "responses": ["the dog", "the cat", "it"], "scores": [1, 3, 2]}
    write_rows(tmp_path / "in.jsonl", [row])
    options = ["--data", tmp_path / "in.jsonl", "--predictions", tmp_path / "p.jsonl"]
    status, _, err = command(evaluation.main, "report", run, *options)
    assert status == 0, err
    predicted = read_lines(tmp_path / "p.jsonl")
    assert sorted(line["pair"] for line in predicted) == [[1, 0], [1, 2], [2, 0]]
    rows = [{"prompt": "q", "response": response} for response in row["responses"]]
    exact = score(RewardModel.from_pretrained(run), rows)
    for line in predicted:
        better, worse = line["pair"]
        expected = [exact[better], exact[worse]]
        assert [line["chosen"], line["rejected"]] == pytest.approx(expected, abs=1e-5)


def test_several_files_are_put_beside_each_other_at_the_end(run, tmp_path):
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    write_rows(files[0], toy_rows(8))
    write_rows(files[1], toy_rows(5))
    options = ["--data", *files, "--details", "--output", tmp_path / "r.json"]
    status, out, err = command(evaluation.main, "report", run, *options)
    assert status == 0, err
    reports = json.loads((tmp_path / "r.json").read_text())
    for line, file, figures in zip(out.splitlines()[-2:], files, reports):
        low, high = figures["accuracy_ci95"]
        numbers = [figures["accuracy"], low, high, figures["longer_wins_accuracy"]]
        numbers += [figures["loss"], figures["calibration"]["ece"]]
        shown = [f"{number:.3f}" for number in numbers]
        assert line.split() == [str(figures["pairs"]), *shown, str(file)]


def test_one_file_is_beside_nothing(run, tmp_path):
    write_rows(tmp_path / "in.jsonl", toy_rows(4))
    options = ["--data", tmp_path / "in.jsonl", "--details"]
    status, out, err = command(evaluation.main, "report", run, *options)
    assert status == 0 and "all files" not in out, err


def test_plot_draws_the_pairs_and_the_curve_of_the_run(run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "pyplot", lambda: None)
    monkeypatch.setattr(plots, "draw", lambda *given: drawn.append(given))
    monkeypatch.setattr(plots, "read_metrics", lambda folder: [{"step": 1, "folder": folder}])
    write_rows(tmp_path / "in.jsonl", toy_rows(4))
    options = ["--data", tmp_path / "in.jsonl", "--plot", tmp_path / "x.png"]
    status, _, err = command(evaluation.main, "report", run, *options)
    assert status == 0, err
    ((path, pairs, figures, metrics),) = drawn
    assert path == str(tmp_path / "x.png") and metrics == [{"step": 1, "folder": run}]
    assert (pairs.r_chosen - pairs.r_rejected).mean() == pytest.approx(figures["mean_margin"])


# ---------------------------------------------------------------- errors in one line


@pytest.mark.parametrize("options", [
    ["--predictions", "in.jsonl"], ["--output", "x", "--predictions", "x"],
    ["--details", "--output", "in.jsonl"], ["--plot", "in.jsonl"],
    ["--details", "--data", "in.jsonl", "in.jsonl"],
])
def test_files_that_would_overwrite_each_other_are_refused(run, tmp_path, options):
    file = write_rows(tmp_path / "in.jsonl", toy_rows(4))
    before = file.read_text()
    paths = [o if o.startswith("--") else tmp_path / o for o in options]
    status, out, err = command(evaluation.main, "report", run, "--data", file, *paths)
    assert (status, out, err.count("\n")) == (2, "", 1), "say it before the work, not after it"
    assert err.endswith("each has to be another file\n")
    assert file.read_text() == before and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("option", ["--output", "--predictions", "--plot"])
def test_a_file_in_a_folder_that_does_not_exist_is_refused_before_the_work(run, tmp_path, option):
    file = write_rows(tmp_path / "in.jsonl", toy_rows(2))
    options = ["--data", file, "--details", option, tmp_path / "nowhere" / "x.png"]
    status, out, err = command(evaluation.main, "report", run, *options)
    assert (status, out, err.count("\n")) == (2, "", 1) and "its folder does not exist" in err


@pytest.mark.parametrize("plot, files, message", [
    ("x.txt", ["one.jsonl"], "x.txt: not a picture"),
    ("x.png", ["one.jsonl", "two.jsonl"], "--plot draws one file of --data"),
])
def test_a_picture_that_cannot_be_drawn_is_one_line(
    run, tmp_path, monkeypatch, plot, files, message
):
    monkeypatch.setattr(plots, "pyplot", lambda: None)
    paths = [write_rows(tmp_path / name, toy_rows(2)) for name in files]
    options = ["--data", *paths, "--plot", tmp_path / plot]
    status, out, err = command(evaluation.main, "report", run, *options)
    assert (status, out, err.count("\n")) == (2, "", 1) and message in err, err


def test_pictures_without_matplotlib_are_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    file = write_rows(tmp_path / "in.jsonl", toy_rows(2))
    options = ["--data", file, "--plot", tmp_path / "x.png"]
    status, out, err = command(evaluation.main, "report", run, *options)
    message = "eval.py: pictures need matplotlib, an optional extra: pip install matplotlib\n"
    assert (status, out, err) == (2, "", message), "say it before the work, not after it"
