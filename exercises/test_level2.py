"""The checks of level 2: model and data."""
import copy
import random

import torch

from data import parse_row
from exercises.checking import (
    answers,
    assert_close,
    small_batch,
    small_model,
    small_tokenizer,
)
from model import PADDED

level2 = answers("level2")


def test_last_of_rows_of_all_lengths():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    found = level2.last_token(mask)
    hint = "An index counts from 0: sum of the mask minus 1."
    assert found is None or found.tolist() != [4, 2, 1], hint
    hint = "T − 1 is the last column. In a shorter sequence a pad is there."
    assert_close(found[1:], [1, 0], hint)
    hint = "−1 for the full row: it has no pad that one could look for. Count the ones instead."
    assert found[0] != -1, hint
    assert_close(found, [3, 1, 0], "Is it the sum of the mask minus 1?")
    hint = "An index has to be an integer (int64): indexing refuses others."
    assert level2.last_token(mask.float()).dtype == torch.int64, hint


def test_gather_reads_what_the_model_reads():
    model, batch = small_model(), small_batch()
    found = level2.rewards(model, batch.input_ids, batch.attention_mask)
    hidden = model.model(batch.input_ids, PADDED)
    last_column = model.score(hidden[:, -1]).squeeze(-1)
    is_last_column = found is not None and found.shape == last_column.shape
    is_last_column = is_last_column and torch.allclose(found, last_column)
    assert not is_last_column, "These are the rewards at column −1: in shorter rows, at a pad."
    hint = "Is it the hidden state at Σ mask − 1, with model.score (bias too) on it, as (R,)?"
    assert_close(found, model(**batch.inputs()), hint)
    assert found.requires_grad, "No gradient flows: nothing could be learned from these rewards."


def test_gather_does_not_depend_on_what_stands_at_pads():
    model, batch = small_model(), small_batch()
    others = torch.where(batch.attention_mask == 1, batch.input_ids, 7)
    hint = "Rewards changed when other ids stood at the pads: something reads a pad."
    before = level2.rewards(model, batch.input_ids, batch.attention_mask)
    assert_close(level2.rewards(model, others, batch.attention_mask), before, hint)
    for row, mask, reward in zip(batch.input_ids, batch.attention_mask, before):
        alone = row[: mask.sum()][None]  # (1, T)
        hint = "A text has another reward alone than in a batch with longer ones."
        assert_close(level2.rewards(model, alone, torch.ones_like(alone)), reward[None], hint)


def test_start_is_where_the_response_begins():
    tokenizer = small_tokenizer()
    for prompt, response in (("Which colour is snow?", "It is white."), ("Hi", "Hi. Hi.")):
        row = parse_row({"prompt": prompt, "response": response})
        _, expected, _ = tokenizer.encode_row(row)
        found = level2.response_start(tokenizer, prompt, response)
        hint = "One too many: encode() adds an end token to the prompt alone, and the dialogue has "
        hint += "the first token of the answer there."
        assert found != expected + 1, hint
        hint = "One too few: this is the index of the last equal id, not the number of equal ids."
        assert found != expected - 1, hint
        hint = "Did you render the prompt with add_generation_prompt=True? 'Assistant:' belongs to "
        hint += "the prompt: all its responses have it."
        assert_close(found, expected, hint)


def test_start_is_found_by_comparing_ids():
    """Some chat templates end the prompt alone with words that the dialogue does not have."""
    tokenizer = copy.copy(small_tokenizer())
    plain = tokenizer.render

    def render(messages, add_generation_prompt=False):
        text = plain(messages, add_generation_prompt=add_generation_prompt)
        return text + " Yes. It is green." if add_generation_prompt else text

    tokenizer.render = render
    question = [{"role": "user", "content": "Hi"}]
    dialogue = [*question, {"role": "assistant", "content": "Xes. It is green."}]
    [before] = tokenizer.encode([render(question, add_generation_prompt=True)])
    [whole] = tokenizer.encode([render(dialogue)])
    expected = int((before[: len(whole)] != whole[: len(before)]).argmax())
    hint = "This template (Qwen3's does it too) ends the prompt alone with words that the dialogue "
    hint += "does not have. So the length of the prompt says too much: compare both id by id, and "
    hint += "stop at the first difference. (Later ids may be equal again.)"
    assert_close(level2.response_start(tokenizer, "Hi", "Xes. It is green."), expected, hint)


def test_ranked_responses_give_all_pairs_once():
    found = level2.pairs_and_weights([3.0, 1.0, 3.0, 2.0])
    hint = "Equal scores (here of 0 and 2) are a tie: nobody preferred one of them. No pair."
    assert not {(0, 2), (2, 0)} & {pair[:2] for pair in found}, hint
    hint = "Expected all pairs with a higher score first, also those that are not neighbours."
    assert sorted(pair[:2] for pair in found) == [(0, 1), (0, 3), (2, 1), (2, 3), (3, 1)], hint
    assert level2.pairs_and_weights([1.0, 1.0]) == [], "Where all are tied there is no pair: []."


def test_ranked_responses_weigh_one_together():
    for scores in ([1.0, 0.0], [3.0, 1.0, 3.0, 2.0], [9.0, 8.0, 7.0, 6.0, 5.0]):
        weights = [pair[2] for pair in level2.pairs_and_weights(scores)]
        hint = "The weights of a prompt's pairs must add up to 1. Ties do not count: divide by the "
        hint += "number of pairs that there are, not by K(K−1)/2."
        assert_close(sum(weights), 1.0, hint)
        assert len(set(weights)) == 1, "The pairs of a prompt weigh all the same."


ROWS = [{"prompt": f"Prompt {i % 20}?", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(60)]


def test_split_keeps_prompts_whole():
    train, held_out = level2.split(ROWS, 0.2)
    of_train, of_held_out = ({row["prompt"] for row in side} for side in (train, held_out))
    hint = "A prompt is on both sides: decide for each PROMPT, not for each row. The model has "
    hint += "seen such a prompt in training, so its accuracy there is too good."
    assert not of_train & of_held_out, hint
    assert len(train) + len(held_out) == len(ROWS), "Rows were lost or doubled."
    for fraction, count in ((0.2, 4), (0.22, 4), (0.23, 5)):
        found = len({row["prompt"] for row in level2.split(ROWS, fraction)[1]})
        hint = f"20 prompts, fraction {fraction}: expected {count} held-out prompts, found {found}."
        assert found == count, hint + " Is it round()?"
    assert train == [row for row in ROWS if row in train], "Keep the rows in their order."


def test_split_does_not_depend_on_the_order_of_rows():
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    _, before = level2.split(ROWS, 0.2)
    _, after = level2.split(shuffled, 0.2)
    hint = "The same rows in another order are split differently: two runs on the same data cannot "
    hint += "be compared. Let the text of the prompt decide, through a hash."
    assert {row["prompt"] for row in before} == {row["prompt"] for row in after}, hint


class AfterRestart(str):
    """A text whose hash() is another one, as it is after another start of Python."""

    def __hash__(self):
        return hash(self[::-1])


def test_split_is_the_same_in_another_process():
    restarted = [row | {"prompt": AfterRestart(row["prompt"])} for row in ROWS]
    _, before = level2.split(ROWS, 0.2)
    _, after = level2.split(restarted, 0.2)
    hint = "After another start of Python the split is another one: hash() of a text and the order "
    hint += "of a set change with every start. Sort the prompts, or use a hash from hashlib."
    assert {row["prompt"][:] for row in before} == {row["prompt"][:] for row in after}, hint


def test_split_is_not_by_alphabet():
    by_alphabet = sorted({row["prompt"] for row in ROWS})
    first, last = set(by_alphabet[:4]), set(by_alphabet[-4:])
    _, held_out = level2.split(ROWS, 0.2)
    hint = "The first or last prompts of the alphabet are held out. They begin alike, so they are "
    hint += "no fair sample: sort by a hash of the text, not by the text."
    assert {row["prompt"] for row in held_out} not in (first, last), hint
    assert held_out == [row for row in ROWS if row in held_out], "Keep the rows in their order."


def flipped_rows(before, after):
    """The numbers of rows that are not as they were."""
    return [n for n, (a, b) in enumerate(zip(before, after)) if a != b]


def test_noise_flips_the_share_that_was_asked_for():
    rows = copy.deepcopy(ROWS)
    flipped = level2.flip_labels(rows, 0.1, seed=0)
    assert rows == ROWS, "The rows that were given have changed: copy a row before you change it."
    assert len(flipped) == len(rows), "There must be as many rows as before."
    numbers = flipped_rows(rows, flipped)
    hint = f"10% of 60 rows are 6; {len(numbers)} are changed. Draw exactly so many different rows."
    assert len(numbers) == 6, hint
    half = flipped_rows(rows, level2.flip_labels(rows, 0.5, seed=0))
    hint = "Half of 60 rows are 30 DIFFERENT rows: draw without replacement (random.sample)."
    assert len(half) == 30, hint
    assert half[-1] - half[0] > 29, "The flipped rows are neighbours: draw them at random."
    hint = "11% of 60 rows are 6.6, so 7: round() it."
    assert len(flipped_rows(rows, level2.flip_labels(rows, 0.11, seed=0))) == 7, hint
    assert numbers != list(range(6)), "The first rows were flipped: draw them at random."
    for n in numbers:
        hint = "A flipped row has its chosen and rejected exchanged, and nothing else."
        expected = rows[n] | {"chosen": rows[n]["rejected"], "rejected": rows[n]["chosen"]}
        assert flipped[n] == expected, hint
    hint = "The same seed must flip the same rows: random.Random(seed)."
    assert level2.flip_labels(rows, 0.1, seed=0) == flipped, hint
    hint = "Another seed flips the same rows: is the seed used?"
    assert level2.flip_labels(rows, 0.1, seed=1) != flipped, hint


def test_noise_leaves_gold_rewards_with_their_response():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "gold_chosen": 1.0, "gold_rejected": -1.0}
    [flipped] = level2.flip_labels([row], 1.0, seed=0)
    hint = "Response a is worth 1.0, whatever its label says. Exchange the gold rewards too, or "
    hint += "the report compares with rewards of the wrong response."
    assert (flipped["rejected"], flipped["gold_rejected"]) == ("a", 1.0), hint


def test_fewer_prompts_keep_all_their_rows():
    rows = level2.keep_prompts(ROWS, 5, seed=0)
    prompts = {row["prompt"] for row in rows}
    assert len(prompts) == 5, f"Asked for 5 prompts, found {len(prompts)}."
    hint = "A kept prompt has lost some rows: choose prompts, not rows."
    assert rows == [row for row in ROWS if row["prompt"] in prompts], hint
    hint = "The first prompts were kept: draw them at random."
    by_alphabet = sorted({row["prompt"] for row in ROWS})
    assert prompts not in ({f"Prompt {i}?" for i in range(5)}, set(by_alphabet[:5])), hint
    other = {row["prompt"] for row in level2.keep_prompts(ROWS, 5, seed=1)}
    assert other != prompts, "Another seed keeps the same prompts: is the seed used?"


def test_fewer_prompts_are_among_the_more():
    many = [{"prompt": f"Prompt {i}?", "chosen": "a", "rejected": "b"} for i in range(500)]
    for rows, count in ((ROWS, 5), (many, 30)):
        few, more = (level2.keep_prompts(rows, n, seed=0) for n in (count, 3 * count))
        hint = f"{3 * count} prompts do not contain the {count}: shuffle all prompts once, then "
        hint += "take the first `count`. (random.sample draws others for another count.)"
        assert all(row in more for row in few), hint
    few = level2.keep_prompts(ROWS, 5, seed=0)
    hint = "The order of the rows decides which prompts are kept: sort the prompts first."
    again = level2.keep_prompts(ROWS[::-1], 5, seed=0)
    assert {row["prompt"] for row in again} == {row["prompt"] for row in few}, hint
    restarted = [row | {"prompt": AfterRestart(row["prompt"])} for row in ROWS]
    again = level2.keep_prompts(restarted, 5, seed=0)
    hint = "After another start of Python other prompts are kept: a set has another order then. "
    hint += "Sort the prompts first."
    assert {row["prompt"][:] for row in again} == {row["prompt"] for row in few}, hint
