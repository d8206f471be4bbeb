"""The rules of benchmarks: by hand, and against the numbers of their published code.

Numbers marked "theirs" were printed by the functions named there, taken from the repositories
allenai/reward-bench (05a9005), THU-KEG/RM-Bench and ScalerLab/JudgeBench, for the rewards that
stand here. Nothing of that code is needed to run these tests.
"""
import json

import numpy as np
import pytest
from conftest import command, save_run, tiny_model, tiny_tokenizer, write_rows

import eval as evaluation
from data import Example, Row
from extras import leaderboards, report_tables
from extras.leaderboards import rewardbench


def row(raw, scores, rewards):
    """(example, rewards) as report_details hands them over."""
    origin = Row([], [], scores, "f.jsonl:1", raw)
    sequences = [np.zeros(1, np.int32)] * len(scores)
    return Example(sequences, scores, 0, row=origin), np.array(rewards, np.float32)


def figures(rows, name):
    return leaderboards.figures(rows)[name]


def best_of_4(subset, rewards, right=1):
    """A row of RewardBench 2."""
    texts = [f"answer {i}" for i in range(len(rewards))]
    raw = {"subset": subset, "chosen": texts[:right], "rejected": texts[right:], "id": "1"}
    scores = [1.0] * right + [0.0] * (len(rewards) - right)
    return row(raw, scores, rewards)


def tie(name, right, rewards):
    example, r = best_of_4("Ties", rewards, right)
    example.row.raw.update(id=name, num_correct=right)
    return example, r


TIES = [
    tie("ref:1", 1, [2, 0, -1]), tie("tied:1", 3, [1, 1.5, 0.5, -1, 0.25]),
    tie("ref:2", 1, [0.5, 1]), tie("tied:2", 2, [2, 1, -1]),
    tie("ref:3", 1, [3, -1]), tie("tied:3", 2, [1, 1, 0]),  # its right answers do not differ
    tie("ref:5", 1, [1, 0]), tie("tied:8", 2, [0, 1, 0.5]),  # only one row of these questions
]
FIVE = [
    best_of_4("Factuality", [2, 1, 0, 0]), best_of_4("Factuality", [1, 1, 0, 0.5]),
    best_of_4("Precise IF", [1, 1, 1, 0.5]), best_of_4("Math", [0, 1, 2, 0.5]),
    best_of_4("Safety", [1, 1, 1, 1]), best_of_4("Focus", [3, 1, 1, 1]),
]


# ---------------------------------------------------------------- RewardBench 2


def test_ties_are_accuracy_and_margins_over_questions():
    parts = figures(TIES, "RewardBench 2")["parts"]
    # gap of ref: 2, −0.5, 4 (and 1); of tied: 0.25, 2, 1 (and −0.5); spread: 1, 1, 0
    a_ref, a_tied, p, p_hard = 3 / 4, 3 / 4, 2 / 3, 1 / 3
    t = (np.tanh(0.25 - 1) + np.tanh(-0.5 - 1) + 1) / 3
    expected = 0.3 * a_ref + 0.3 * a_tied + 0.2 * p + 0.2 * p_hard + 0.01 * t
    assert parts["Ties"]["score"] == pytest.approx(expected, abs=1e-12)
    theirs = 0.648199009313226  # process_single_model
    assert parts["Ties"]["score"] == pytest.approx(theirs, abs=1e-12)


def test_a_question_where_all_rewards_are_equal_counts_as_in_their_code():
    rows = [tie("ref:4", 1, [1, 0]), tie("tied:4", 2, [1, 1, 1])]
    theirs = 0.3  # process_single_model: 0 / 0 counts 0 there
    assert figures(rows, "RewardBench 2")["parts"]["Ties"]["score"] == pytest.approx(theirs)


def test_best_of_4_shares_a_win_among_those_with_the_highest_reward():
    parts = figures(FIVE, "RewardBench 2")["parts"]
    scores = {name: part["score"] for name, part in parts.items()}
    expected = {"Factuality": 0.75, "Precise IF": 1 / 3, "Math": 0, "Safety": 0.25, "Focus": 1}
    assert scores == pytest.approx(expected)
    # theirs: reroll_and_score_dataset gives 1, 1/2, 1/3, 0 and 1/4 for the first five rows
    assert sum(part["rows"] for part in parts.values()) == 6


def test_the_total_is_the_mean_of_six_subsets():
    board = figures(FIVE + TIES, "RewardBench 2")
    mean = (0.75 + 1 / 3 + 0 + 0.25 + 1 + 0.648199009313226) / 6
    assert board["total"] == {"rows": 14, "score": pytest.approx(mean)}
    assert board["problems"] == [] and board["other_rows"] == 0


def test_a_missing_subset_is_named_and_there_is_no_total():
    board = figures(FIVE[:4] + TIES, "RewardBench 2")
    assert board["total"] is None, "a mean of fewer subsets is no score of the benchmark"
    assert board["problems"] == ["no rows of Safety", "no rows of Focus"]


@pytest.mark.parametrize("rows, problem", [
    (TIES[:1] + TIES[3:4], "no question has both of its rows"),
    ([tie("12", 1, [1, 0])], "field 'id' is neither ref:N nor tied:N"),
    ([tie("ref:1", 1, [1, 0]), tie("tied:1", 1, [1, 0])], "tied:1 has too few right"),
    ([tie("ref:1", 1, [1])], "ref:1 has too few right or wrong"),
])
def test_ties_that_their_code_could_not_score_are_a_problem_in_one_line(rows, problem):
    board = figures(FIVE + rows, "RewardBench 2")
    assert "Ties" not in board["parts"] and board["total"] is None
    assert len(board["problems"]) == 1 and problem in board["problems"][0]


def test_labels_that_contradict_each_other_are_not_scored():
    rows = [tie("ref:1", 1, [1, 0]), tie("tied:1", 2, [1, 1, 0])]
    rows[1][0].row.raw["num_correct"] = 1
    assert "'num_correct'" in figures(rows, "RewardBench 2")["problems"][-1]


# ---------------------------------------------------------------- RewardBench 1


def pair(raw, rewards):
    return row(raw, [1.0, 0.0], rewards)


def rewardbench_1_rows():
    """Four rows a subset. Of subset number i, i % 5 are right; the wrong ones are ties."""
    rows = []
    names = [name for weights in rewardbench.SECTIONS.values() for name in weights]
    for i, name in enumerate(names):
        for k in range(4):
            rows.append(pair({"subset": name}, [1, 0] if k < i % 5 else [1, 1]))
    return rows


def test_the_sections_weigh_their_subsets_as_published():
    board = figures(rewardbench_1_rows(), "RewardBench 1")
    found = {name: part["accuracy"] for name, part in board["parts"].items()}
    # Chat by hand: its subsets have accuracies 0, 1/4, 1/2, 3/4 and 1
    chat = (95 / 4 + 95 / 2 + 28 * 3 / 4 + 40) / (100 + 95 + 95 + 28 + 40)
    assert found["Chat"] == pytest.approx(chat)
    # math weighs as much as the six subsets of code: 1/4, and 1/2, 3/4, 1, 0, 1/4, 1/2
    code = (1 / 2 + 3 / 4 + 1 + 0 + 1 / 4 + 1 / 2) / 6
    assert found["Reasoning"] == pytest.approx((1 / 4 + code) / 2)
    # theirs: calculate_scores_per_section
    theirs = {"Chat": 0.36941340782122906, "Chat Hard": 0.45614035087719296,
              "Safety": 0.5952702702702702, "Reasoning": 0.375}
    assert found == pytest.approx(theirs)
    assert board["total"] == {"rows": 92, "accuracy": pytest.approx(0.4489560072421731)}


def test_the_weights_are_the_numbers_of_rows_but_for_math():
    weights = {}
    for of_section in rewardbench.SECTIONS.values():
        weights |= of_section
    assert len(weights) == 23
    assert weights["math-prm"] == sum(n for name, n in weights.items() if name.startswith("hep-"))
    assert sum(weights.values()) - weights["math-prm"] + 447 == 2985, "rows of the data set"


def test_a_section_without_all_its_subsets_is_not_scored():
    rows = [r for r in rewardbench_1_rows() if r[0].row.raw["subset"] != "hep-go"]
    board = figures(rows, "RewardBench 1")
    assert board["problems"] == ["Reasoning: no rows of hep-go"]
    assert list(board["parts"]) == ["Chat", "Chat Hard", "Safety"] and board["total"] is None


# ---------------------------------------------------------------- RM-Bench

RM_BENCH = [
    ("chat", [3, 2, 2, 1, 1, 0]), ("chat", [0, 0, 0, 3, 2, 3]), ("code", [2, 2, 3, 2, 2, 2]),
    ("math", [2, 3, 1, 3, 2, 0]), ("safety-refuse", [1, 3, 2, 0, 3, 2]),
    ("safety-response", [3, 0, 0, 3, 0, 2]), ("safety-refuse", [0, 1, 1, 1, 1, 0]),
]


def rm_bench_rows(rows=RM_BENCH):
    made = []
    for domain, rewards in rows:
        raw = {"domain": domain, "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}
        made.append(row(raw, [1.0] * 3 + [0.0] * 3, rewards))
    return made


def test_rm_bench_compares_three_styles_with_three():
    board = figures(rm_bench_rows(), "RM-Bench")
    # code: chosen 2, 2, 3 against 2, 2, 2. Only the last one, in markdown, is above
    code = {"rows": 1, "easy": 2 / 3, "normal": 1 / 3, "hard": 0, "average": 1 / 3}
    assert board["parts"]["code"] == pytest.approx(code)
    lines = [line for line in board["matrix"] if line["chosen"].startswith("code")]
    assert [list(line.values()) for line in lines] == [
        [0, 0, 0, "code, concise"], [0, 0, 0, "code, detailed"], [1, 1, 1, "code, markdown"],
    ]
    # theirs: compute_accuracy
    averages = {name: part["average"] for name, part in board["parts"].items()}
    theirs = {"chat": 0.5, "math": 4 / 9, "code": 1 / 3, "safety": 0.2962962962962963}
    assert averages == pytest.approx(theirs)
    assert board["total"] == pytest.approx({
        "rows": 7, "easy": 0.3472222222222222, "normal": 0.43055555555555547,
        "hard": 0.40277777777777773, "average": 0.3935185185185185,
    })


def test_rm_bench_joins_the_two_safety_domains_and_needs_all_four():
    board = figures(rm_bench_rows(RM_BENCH[4:]), "RM-Bench")
    assert board["parts"]["safety"]["rows"] == 3
    assert board["problems"] == [f"no rows of {name}" for name in ("chat", "code", "math")]
    assert board["total"] is None


# ---------------------------------------------------------------- JudgeBench

JUDGED = [
    ("mmlu-pro-law", "A>B", 2, 1), ("mmlu-pro-math", "B>A", 1, 1), ("mmlu-pro-law", "A>B", 1, 1),
    ("livebench-math", "B>A", 0, 3), ("livebench-reasoning", "A>B", 0, 3),
    ("livecodebench", "B>A", 4, 3), ("livecodebench", "A>B", 4, 3),
]


def judged_rows(chosen_first):
    """A row may list A first, or the chosen response."""
    made = []
    for source, label, a, b in JUDGED:
        raw = {"source": source, "response_A": "x", "response_B": "y", "label": label}
        scores, rewards = [1.0, 0.0], [a, b]
        if label == "B>A":
            scores = [0.0, 1.0]
        if chosen_first and label == "B>A":
            scores, rewards = scores[::-1], rewards[::-1]
        made.append(row(raw, scores, rewards))
    return made


@pytest.mark.parametrize("chosen_first", [False, True])
def test_judgebench_reads_a_tie_as_b_is_better(chosen_first):
    board = figures(judged_rows(chosen_first), "JudgeBench")
    found = {name: part["accuracy"] for name, part in board["parts"].items()}
    # theirs: compute_final_metrics, of 100
    theirs = {"mmlu-pro": 2 / 3, "livebench-reasoning": 0, "livebench-math": 1,
              "livecodebench": 0.5}
    assert found == pytest.approx(theirs)
    assert board["total"] == pytest.approx({"rows": 7, "accuracy": 4 / 7}), (
        "the total is over all pairs, and not the mean of the sources"
    )


# ---------------------------------------------------------------- PPE


def test_ppe_preference_is_accuracy_and_a_tie_is_half():
    raw = {"question_id": "1", "winner": "model_b", "model_a": "m", "model_b": "n",
           "response_1": "x", "response_2": "y"}
    rewards = [[0, 1], [1, 0], [1, 1], [-1, 3]]
    rows = [row(raw, [0.0, 1.0], r) for r in rewards]
    board = figures(rows, "PPE human preference")
    assert board["total"] == {"rows": 4, "accuracy": (1 + 0 + 0.5 + 1) / 4}


def best_of_k(scores, rewards, pairs):
    raw = {"response_1": "a", "response_2": "b", "sampled_conflict_pairs": pairs}
    return row(raw, scores, rewards)


def test_ppe_best_of_k_scores_what_is_picked_and_the_pairs_that_are_listed():
    rows = [
        best_of_k([1.0, 0.0, 0.0, 1.0], [0, 1, -1, 2], [[0, 1], [1, 0], [0, 2], [3, 0]]),
        best_of_k([0.0, 1.0, 0.0, 0.0], [3, 3, 0, 1], [[1, 0]]),
    ]
    total = figures(rows, "PPE best of K")["total"]
    # pairs: 0 below 1 twice (wrong), 0 above 2 (right); 3 and 0 are both right: no pair; one tie
    expected = {"rows": 2, "pairs": 4, "accuracy": (0 + 0 + 1 + 0.5) / 4,
                "picked": (1 + 0.5) / 2, "random": (0.5 + 0.25) / 2, "best": 1.0}
    assert total == pytest.approx(expected)


@pytest.mark.parametrize("pairs", [[[0, 4]], [[0]], [["0", 1]], "0 1", [0, 1]])
def test_pairs_that_are_none_are_no_row_of_ppe(pairs):
    assert leaderboards.figures([best_of_k([1.0, 0.0], [0, 1], pairs)]) == {}


# ---------------------------------------------------------------- recognised or not


@pytest.mark.parametrize("raw", [
    {}, {"subset": None}, {"subset": ["Math"]}, {"subset": "math"}, {"subset": "Math"},
    {"domain": 3, "chosen": ["a"] * 3, "rejected": ["b"] * 3}, {"domain": "chat"},
    {"subset": "Math", "chosen": ["a"], "rejected": "b"},
    {"source": "mmlu-pro", "label": "A>B"}, {"question_id": 1, "winner": "model_a"},
])
def test_other_rows_are_of_no_benchmark(raw):
    assert leaderboards.figures([pair(raw, [1, 0])]) == {}


def test_where_the_published_code_was_not_compared_the_title_says_so(capsys):
    board = figures([best_of_k([1.0, 0.0], [0, 1], [[0, 1]])], "PPE best of K")
    report_tables.print_leaderboard("PPE best of K", board)
    assert "PPE best of K, by a plain rule, not compared with its code\n" in capsys.readouterr().out


def test_rows_of_other_data_are_counted_beside_the_benchmark(capsys):
    rows = [*rm_bench_rows(), pair({"source": "mine"}, [1, 0])]
    board = figures(rows, "RM-Bench")
    assert board["rows"] == 7 and board["other_rows"] == 1
    assert board["total"]["average"] == pytest.approx(0.3935185185185185)
    report_tables.print_leaderboard("RM-Bench", board)
    out = capsys.readouterr().out
    assert "7 rows (published: 1327)\n1 rows of the file are other data" in out


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leaderboards") / "run"
    return save_run(folder, tiny_model(), tiny_tokenizer(bos=True), max_length=256)


def published_rows():
    """RewardBench 2 as it is published: lists of texts, ids, counts."""
    rows = []
    for subset in rewardbench.SUBSETS[:5]:
        for i in range(3):
            rows.append({"id": str(i), "subset": subset, "chosen": [f"the cat {i}"],
                         "rejected": ["a dog", "it", "no"], "num_correct": 1})
    for i in range(3):
        right = ["red", "blue", "green"]
        rows.append({"id": f"ref:{i}", "chosen": [right[i]], "rejected": ["dog"]})
        rows.append({"id": f"tied:{i}", "chosen": right, "rejected": ["dog", f"cat {i}"]})
    for made in rows:
        made.setdefault("subset", "Ties")
        made |= {"prompt": f"q {made['id']}", "num_correct": len(made["chosen"])}
    return rows


def test_the_report_gives_the_benchmarks_score_and_not_the_mean_of_accuracies(run, tmp_path):
    file = write_rows(tmp_path / "rb2.jsonl", published_rows())
    output = tmp_path / "r.json"
    status, out, err = command(
        evaluation.main, "report", run, "--data", file, "--details", "--output", output
    )
    assert status == 0, err
    figures_there = json.loads(output.read_text())
    board = figures_there["leaderboards"]["RewardBench 2"]
    assert list(board["parts"]) == list(rewardbench.SUBSETS) and board["rows"] == 21
    section = out.partition("RewardBench 2, by its own rule\n")[2]
    for name, part in [*board["parts"].items(), ("total", board["total"])]:
        assert f"{part['score']:.3f} {name:>11}" in section
    assert "their mean (not the score of RewardBench 2)" in out
    for subset in rewardbench.SUBSETS[:5]:
        best = figures_there["by"]["subset"][subset]["best_wins"]
        assert board["parts"][subset]["score"] == pytest.approx(best)


def test_what_is_missing_is_printed_instead_of_a_total(run, tmp_path):
    rows = [made for made in published_rows() if made["subset"] not in ("Math", "Ties")]
    file = write_rows(tmp_path / "part.jsonl", rows)
    status, out, err = command(evaluation.main, "report", run, "--data", file, "--details")
    assert status == 0, err
    section = out.partition("RewardBench 2, by its own rule\n")[2]
    assert "no total: no rows of Math\nno total: no rows of Ties\n" in section
    assert "      total\n" not in section
