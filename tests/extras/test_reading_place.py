"""Where the reward is read: a head that is there already keeps the place that it was trained with."""
import json

import pytest
from conftest import command, save_run, tiny_model, tiny_tokenizer, write_rows

import train_rm
from eval import Scorer, score
from model import CheckpointError, RewardModel

NEWLINE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
ROW = {"prompt": "the cat", "response": "sat"}
TEXT = "<user>the cat</s>\n<assistant>sat</s>\n"


@pytest.fixture()
def folder(tmp_path):
    """Another project's reward model: its template, and a config.json that is not ours."""

    def build(pad_token_id, template=NEWLINE):
        run = save_run(tmp_path / "theirs", tiny_model(), tiny_tokenizer(), 256)
        (run / "chat_template.jinja").write_text(template)
        config = json.loads((run / "config.json").read_text())
        del config["id2label"]
        (run / "config.json").write_text(json.dumps(config | {"pad_token_id": pad_token_id}))
        return run

    return build


def where_transformers_reads(ids, pad_token_id):
    """The ids up to the last one that is not the pad."""
    while ids[-1] == pad_token_id:
        ids = ids[:-1]
    return ids


@pytest.mark.parametrize("pad_token_id", [0, 2, None])
@pytest.mark.parametrize("newline", ["\n", ""])
def test_a_head_that_is_there_is_read_where_transformers_reads_it(pad_token_id, newline, folder):
    template, text = (string.replace("\n", newline) for string in (NEWLINE, TEXT))
    scorer = Scorer(RewardModel.from_pretrained(folder(pad_token_id, template)))
    ids = scorer.tokenizer.backend.encode(text, add_special_tokens=False).ids
    sequence = scorer.read_row(ROW, "row").sequences[0].tolist()
    assert sequence == where_transformers_reads(ids, pad_token_id), "a token was cut or added"


def test_training_on_keeps_the_reading_place(folder, tmp_path):
    theirs = folder(2)
    rows = []
    for i in range(8):
        rows.append({"prompt": f"q {i}", "chosen": f"the cat {i}", "rejected": f"no {i}"})
    data = write_rows(tmp_path / "rows.jsonl", rows)
    args = ["--model", theirs, "--data", data, "--max-steps", 1, "--output", tmp_path / "run"]
    status, out, err = command(train_rm.main, *args, "--device", "cpu")
    assert status == 0, err
    assert "value head kept" in out
    scorers = [Scorer(RewardModel.from_pretrained(path)) for path in (theirs, tmp_path / "run")]
    before, after = (scorer.read_row(ROW, "row").sequences[0].tolist() for scorer in scorers)
    assert before == after
    assert json.loads((tmp_path / "run" / "config.json").read_text())["pad_token_id"] == 2
    settings = json.loads((tmp_path / "run" / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == NEWLINE, "the text is another one in transformers"


def test_a_rendered_text_gets_the_end_token_of_the_template(folder):
    model = RewardModel.from_pretrained(folder(0, NEWLINE.replace("\n", "")))
    text = TEXT.replace("\n", "")
    rewards = score(model, [ROW, {"text": text}, {"text": text.removesuffix("</s>")}])
    assert rewards == pytest.approx([rewards[0]] * 3, abs=1e-5)


@pytest.mark.parametrize("pad_token_id", [-1, 999999, "<pad>", [0, 1]])
def test_a_pad_that_is_no_token_is_no_pad(pad_token_id, folder, tmp_path):
    theirs = folder(pad_token_id)
    scorer = Scorer(RewardModel.from_pretrained(theirs))
    ids = scorer.tokenizer.backend.encode(TEXT, add_special_tokens=False).ids
    assert scorer.read_row(ROW, "row").sequences[0].tolist() == ids
    scorer.tokenizer.save(tmp_path, 64)


def test_a_layout_that_reads_elsewhere_is_not_written(folder, tmp_path):
    from extras import checkpoint_formats

    theirs = folder(2, NEWLINE.replace("\n", ""))
    with pytest.raises(CheckpointError, match="LLaMA-Factory reads at the last token"):
        checkpoint_formats.write_llamafactory(theirs, tmp_path / "out")


def test_a_trained_head_without_a_chat_template_is_said(folder):
    theirs = folder(0)
    (theirs / "chat_template.jinja").unlink()
    settings = json.loads((theirs / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (theirs / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Scorer(RewardModel.from_pretrained(theirs)).tokenizer
    assert "nothing says which texts its trained head has learned" in tokenizer.rendering
