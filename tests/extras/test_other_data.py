"""Other people's data through the whole program: read right, refused, or counted. Never in silence."""
import datetime
import json

import pytest
from conftest import command, copy_run, save_run, tiny_model, tiny_tokenizer, write_rows
from safetensors.torch import load_file

import eval as evaluation
import train_rm
from data import Audit, UNREAD, examples_of, note_lines, parse_row
from extras import jinja_templates

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}</s>"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A pretrained folder without a chat template."""
    folder = tmp_path_factory.mktemp("pretrained")
    return save_run(folder / "plain", tiny_model(), tiny_tokenizer(bos=True), 256)


def with_template(plain, folder, template):
    """The same folder with a chat template."""
    copy_run(plain, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def pairs(count, **more):
    rows = []
    for i in range(count):
        rows.append({"prompt": f"q {i}", "chosen": f"the cat {i}", "rejected": f"no {i}"} | more)
    return rows


def run(model, rows, folder, *more):
    """Status, output and last line of error of a short training run."""
    data = write_rows(folder / "rows.jsonl", rows)
    args = ["--model", model, "--data", data, "--output", folder / "run", "--batch-size", 4]
    status, out, err = command(train_rm.main, *args, "--max-steps", 4, "--device", "cpu", *more)
    return status, out, err.splitlines()[-1] if err else ""


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize("row, prompt", [
    ({"system": "Be brief.", "question": "q", "chosen": "a", "rejected": "b"}, "Be brief. q"),
    ({"instruction": "Add.", "input": "1 and 2", "chosen": "3", "rejected": "4"}, "Add.\n1 and 2"),
    ({"history": [["a", "b"]], "prompt": "q", "chosen": "c", "rejected": "d"}, "a b q"),
])
def test_every_part_of_a_prompt_is_read(row, prompt):
    said = [turn["content"] for turn in parse_row(row).prompt]
    assert said in (prompt.split(" "), [prompt], ["Be brief.", "q"]), "a part of it is lost"


@pytest.mark.parametrize("field", ["context", "query"])
def test_text_that_may_be_the_prompt_is_never_left_aside(field, plain, tmp_path):
    rows = [{field: "Which animal is it?", "chosen": "the cat", "rejected": "no"}] * 4
    status, _, error = run(plain, rows, tmp_path)
    assert status == 2 and f"rows.jsonl:1: no prompt, and text in '{field}'" in error
    assert "--prompt-field" in error


# ---------------------------------------------------------------- fields


@pytest.mark.parametrize("field, value", [("images", ["cat.png"]), ("audios", ["cat.wav"])])
def test_what_is_no_text_stops_training_by_its_name(field, value, plain, tmp_path):
    status, _, error = run(plain, pairs(4, **{field: value}), tmp_path)
    assert status == 2 and f"rows.jsonl:1: field '{field}': only text is read here" in error


@pytest.mark.parametrize("more", [
    {"tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Bergen"}}}]},
    {"reasoning_content": "It purrs."},
])
def test_calls_and_thoughts_that_are_not_written_are_counted(more, plain, tmp_path):
    answer = {"role": "assistant", "content": "the cat"}
    rows = pairs(8)
    for row in rows:
        row["chosen"] = [answer | more]
    status, out, _ = run(plain, rows, tmp_path)
    assert status == 0 and "a response has tool calls or thoughts, which are not written" in out
    blind = with_template(plain, tmp_path / "blind", TURNS)
    (tmp_path / "second").mkdir()
    status, out, _ = run(blind, rows, tmp_path / "second")
    assert status == 0 and "7 rows: the template changed the response" in out


def test_fields_that_nobody_read_are_listed_once(plain, tmp_path):
    status, out, _ = run(plain, pairs(10, judge="m", round=3), tmp_path)
    train = out[out.index("train:") : out.index("held out:")]
    assert status == 0
    assert "fields that nobody read: judge (9 rows), round (9 rows)" in train
    assert note_lines({UNREAD + "x": 1}) == ["fields that nobody read: x (1 row)"]


def test_responses_that_repeat_their_prompt_are_counted(plain, tmp_path):
    rows = pairs(4)
    for row in rows:
        row["chosen"] = row["prompt"] + " " + row["chosen"]
    _, out, _ = run(plain, rows, tmp_path)
    assert "3 rows: a response begins with its whole prompt" in out


def test_the_scores_of_both_sides_check_the_label_and_make_a_margin():
    right = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 8, "score_rejected": 5}
    wrong = right | {"score_chosen": 4}
    audit = Audit()
    list(examples_of(map(parse_row, (right, wrong)), tiny_tokenizer(), 60, audit))
    assert audit.notes == {"score_chosen is below score_rejected": 1}
    assert parse_row(right).margin == 0, "a margin only on request"
    asked = {"margin_from_scores": True}
    assert parse_row(right, layout=asked).margin == 3
    two = {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2.5]}
    assert parse_row(two, layout=asked).margin == 1.5
    with pytest.raises(ValueError, match="f:7: --margin-from-scores needs score_chosen"):
        parse_row({"prompt": "q", "chosen": "a", "rejected": "b"}, "f:7", asked)


# ---------------------------------------------------------------- templates


def test_the_template_in_use_is_named_and_a_pair_is_shown(plain, tmp_path):
    _, out, _ = run(plain, pairs(4), tmp_path)
    assert "texts are rendered without a chat template" in out
    templated = with_template(plain, tmp_path / "templated", TURNS)
    (tmp_path / "second").mkdir()
    _, out, _ = run(templated, pairs(4), tmp_path / "second")
    assert "texts are rendered by the chat template" in out
    shown = [line for line in out.splitlines() if line.startswith("  chosen ")]
    assert len(shown) == 1 and "<user>q" in shown[0] and shown[0].endswith("</s>'")


def test_a_chat_template_can_be_given(plain, tmp_path):
    template = tmp_path / "turns.jinja"
    template.write_text(TURNS)
    status, out, _ = run(plain, pairs(4), tmp_path, "--chat-template", template)
    assert status == 0 and "<user>q" in out
    scorer = evaluation.Scorer(evaluation.RewardModel.from_pretrained(tmp_path / "run"))
    assert scorer.tokenizer.render([{"role": "user", "content": "q"}]) == "<user>q</s>"
    missing = tmp_path / "missing.jinja"
    (tmp_path / "second").mkdir()
    status, _, error = run(plain, pairs(4), tmp_path / "second", "--chat-template", missing)
    assert status == 2 and "missing.jinja: No such file" in error


TODAY = datetime.datetime.now()


class Tomorrow(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return TODAY + datetime.timedelta(days=1)


def test_a_dated_template_gives_the_same_rewards_tomorrow(plain, tmp_path, monkeypatch):
    dated = with_template(plain, tmp_path / "dated", "{{ strftime_now('%d %b %Y') }}" + TURNS)
    assert run(dated, pairs(10), tmp_path)[0] == 0
    rows = "".join(json.dumps({"prompt": "q", "response": f"cat {i}"}) + "\n" for i in range(3))
    _, today, _ = command(evaluation.main, "score", tmp_path / "run", stdin=rows)
    monkeypatch.setattr(jinja_templates.datetime, "datetime", Tomorrow)
    _, tomorrow, _ = command(evaluation.main, "score", tmp_path / "run", stdin=rows)
    assert today == tomorrow, "the reward of the same text changes with the date"


def test_a_run_with_a_dated_template_is_resumed_tomorrow(plain, tmp_path, monkeypatch):
    dated = with_template(plain, tmp_path / "dated", "{{ strftime_now('%d %b %Y') }}" + TURNS)
    (tmp_path / "whole").mkdir()
    assert run(dated, pairs(10), tmp_path / "whole")[0] == 0

    (tmp_path / "cut").mkdir()
    accumulate, steps = train_rm.accumulate_gradients, []

    def stop_at_3(*args):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return accumulate(*args)

    monkeypatch.setattr(train_rm, "accumulate_gradients", stop_at_3)
    assert run(dated, pairs(10), tmp_path / "cut", "--save-steps", 2)[0] == 130
    monkeypatch.setattr(train_rm, "accumulate_gradients", accumulate)
    monkeypatch.setattr(jinja_templates.datetime, "datetime", Tomorrow)
    status, out, err = command(train_rm.main, "--resume", tmp_path / "cut" / "run")
    assert status == 0, err
    files = ("model.safetensors", "tokenizer_config.json")
    whole, cut = (tmp_path / name / "run" for name in ("whole", "cut"))
    assert load_file(whole / files[0]).keys() == load_file(cut / files[0]).keys()
    for name, tensor in load_file(whole / files[0]).items():
        assert tensor.equal(load_file(cut / files[0])[name]), name
    assert (whole / files[1]).read_text() == (cut / files[1]).read_text(), "tomorrow's date"
