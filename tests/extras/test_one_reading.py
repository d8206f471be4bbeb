"""One reading of a row: training, report, score and rank make the same ids of it, in every layout."""
import json

import pytest
from conftest import save_run, tiny_model, tiny_tokenizer, write_rows
from layout_samples import SAMPLES

import eval as evaluation
import train_rm
from data import Audit, examples_of
from model import RewardModel

ANSWERS = ("chosen", "rejected", "response", "responses", "scores", "ranks", "messages")
LEARNED = [name for name, (_, native) in SAMPLES.items() if "response" not in native]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    """A model with a chat template, for which the end of a text and its beginning matter."""
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, tiny_model(max_position_embeddings=1024), tiny_tokenizer(bos=True), 1024)
    config = folder / "tokenizer_config.json"
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}</s>"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template}))
    return evaluation.Scorer(RewardModel.from_pretrained(folder))


def as_lists(example):
    return [sequence.tolist() for sequence in example.sequences]


def rows_to_score(name):
    """One row a response, as published where the response is in a field of its own."""
    row, native = SAMPLES[name]
    if not isinstance(row.get("chosen"), str) or "rejected" not in row:
        row = native
    answers = row.get("responses") or [row["chosen"], row["rejected"]]
    rest = {field: value for field, value in row.items() if field not in ANSWERS}
    return [rest | {"response": answer} for answer in answers]


@pytest.mark.parametrize("name", LEARNED)
def test_training_report_score_and_rank_read_the_same_ids(name, scorer, tmp_path):
    row, native = SAMPLES[name]
    tied = len(set(native.get("scores", [0, 1]))) == 1
    file = write_rows(tmp_path / "rows.jsonl", [row])

    args = train_rm.parse_options(["--data", str(file)])
    rows = list(train_rm.Split(args, [file]).read([file]))
    if tied:
        rows[0].scores = [1.0, 0.0]  # it would be left out, and counted
    audit = Audit()
    trained = list(examples_of(rows, scorer.tokenizer, 1024, audit))
    if not trained:  # an answer that is null in the published row
        assert audit.left_out["empty response"] == 1 and "55k" in name
        return
    ids = as_lists(trained[0])

    if not tied:
        (reported,) = evaluation.examples_of_file(file, scorer, Audit(), skip_bad_rows=False)
        assert as_lists(reported) == ids
    assert as_lists(scorer.read_candidates(row, "row")) == ids, "rank reads another text"
    scored = []
    for single in rows_to_score(name):
        scored += as_lists(scorer.read_text(json.loads(json.dumps(single)), "row"))
    assert scored == ids, "score reads another text"
