"""From rows to batches: one prompt for all responses, an audit that adds up, fair steps."""
import itertools

import numpy as np
import pytest
import torch
from conftest import tiny_tokenizer

from data import RECORD, Audit, DataError, Example, Examples, collate, common_prefix
from data import describe_audit, epoch_order
from data import examples_of, micro_batches, parse_row, prompt_hash, rows_of_step, write_tokens


def pair(prompt, chosen, rejected, **more):
    return parse_row({"prompt": prompt, "chosen": chosen, "rejected": rejected} | more, "f:1")


def several(prompt, responses, ranks, **more):
    return parse_row({"prompt": prompt, "responses": responses, "ranks": ranks} | more, "f:2")


def encode(rows, tokenizer=None, max_length=60, **options):
    """The examples of these rows, and the audit's figures."""
    audit = Audit()
    tokenizer = tokenizer or tiny_tokenizer()
    examples = list(examples_of(rows, tokenizer, max_length, audit, **options))
    return examples, audit.summary()


def text_of(tokenizer, ids) -> str:
    return tokenizer.backend.decode(list(ids), skip_special_tokens=False)


# ---------------------------------------------------------------- prompt and response


@pytest.mark.parametrize("answers", [
    ("the cat sat", "the cat did"), ("a", "ab"), ("dog", "dog."), (" x", "x"), ("\n\nx", "\ny"),
])
def test_the_prompt_is_the_same_tokens_in_all_sequences_and_the_response_the_rest(answers):
    tokenizer = tiny_tokenizer(bos=True)
    [example], _ = encode([pair("the mat", *answers)], tokenizer)
    prompt = tokenizer.render([{"role": "user", "content": "the mat"}], add_generation_prompt=True)
    for sequence, answer in zip(example.sequences, answers):
        assert text_of(tokenizer, sequence[: example.start]) == prompt, "the prompt is left out"
        assert text_of(tokenizer, sequence[example.start :]) == " " + answer + "</s>"


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_shared_beginning_is_that_of_all_sequences_in_any_order(order):
    sequences = [np.array(ids) for ids in ([1, 2, 3, 4], [1, 2, 9], [1, 8, 3, 4])]
    shared = common_prefix([sequences[i] for i in order])
    assert shared == 1, "a sequence was not looked at: its first tokens count as prompt"


def test_without_a_prompt_everything_is_the_response():
    [example], _ = encode([pair("", "the cat", "the cat sat")], tiny_tokenizer(bos=True))
    assert example.start == 0


def test_a_prompt_that_is_too_long_loses_its_oldest_tokens_and_nothing_else():
    tokenizer = tiny_tokenizer(bos=True)
    row = several("first " * 20 + "last", ["good one", "bad", "the worst"], [1, 2, 3])
    [whole], _ = encode([row], tokenizer, 1000)
    header_tokens = len(tokenizer.backend.encode("\nAssistant:", add_special_tokens=False).ids)
    longest = max(map(len, whole.sequences))
    for excess in range(1, longest):
        [*kept], audit = encode([row], tokenizer, longest - excess)
        if not kept:
            break
        for before, after in zip(whole.sequences, kept[0].sequences):
            assert after[-1] == 2, "the end token is cut, and the reward is read there"
            response = before[whole.start :].tolist()
            assert after[-len(response) :].tolist() == response, "a response is cut"
            assert after[0] == 1, "BOS is lost"
            assert after[1:].tolist() == before[1 + excess :].tolist(), "the wrong tokens were cut"
        assert kept[0].start == whole.start - excess, "start is not where the response begins now"
        prompt = text_of(tokenizer, kept[0].sequences[0][: kept[0].start])
        assert prompt.endswith("\nAssistant:"), "the assistant's header is cut"
        assert audit["prompt_shortened"] == 1, "a prompt was shortened and not counted"
    assert excess == whole.start - 1 - header_tokens, "BOS, header and one token of the prompt stay"
    assert audit["left_out"]["too long"] == 1


def test_a_response_is_never_cut():
    _, audit = encode([pair("q", "x" * 100, "bad")])
    assert audit["left_out"]["too long"] == 1


def test_pairs_that_differ_only_at_the_end_still_differ_when_the_prompt_is_shortened():
    begin = "the same beginning "
    rows = [pair("p " * 40, begin + "a", begin + "b"), pair("p " * 40, begin + "b", begin + "ba")]
    examples, audit = encode(rows)
    assert audit["prompt_shortened"] == 2
    for example in examples:
        assert example.sequences[0].tolist() != example.sequences[1].tolist()


# ---------------------------------------------------------------- the audit


def test_read_is_kept_plus_left_out_by_reason():
    rows = [
        pair("q", "good", "bad"),
        pair("q", "good", "bad"),  # a duplicate
        pair("q", "good", "bad"),  # another one
        pair("q", "bad", "good"),  # a contradiction
        pair("long " * 50, "good", "bad"),
        pair("q", "", "bad"),
        pair("q", [{"role": "assistant", "content": " \n"}], "bad"),
        pair("q", "good", []),
        pair("q", "same", "same"),
        several("q", ["a", "b"], [1, 1]),
        several("q", ["a"], [1]),
        pair("q", "x" * 100, "bad"),
        parse_row({"prompt": "q", "responses": ["a", "b"]}),  # nothing orders them
    ]
    examples, audit = encode(rows, skip_bad_rows=True)
    kept = [[text_of(tiny_tokenizer(), ids) for ids in e.sequences] for e in examples]
    assert all("same" not in answers[0] for answers in kept), "a pair of equal responses is kept"
    assert audit["left_out"]["empty response"] == 3, "an empty response is kept"
    assert len(examples) == audit["kept"] == audit["pairs"] == 5
    assert audit["left_out"] == {
        "malformed": 1,
        "refused by the template": 0,
        "empty response": 3,
        "identical responses": 1,
        "all tied": 1,
        "one response only": 1,
        "too long": 1,
    }
    assert audit["read"] == len(rows) == audit["kept"] + sum(audit["left_out"].values())
    assert audit["duplicates"] == 2, "an equal pair before it makes a pair a duplicate"
    assert audit["contradictions"] == 1, "its reverse before it makes it a contradiction"
    assert audit["prompt_shortened"] == 1
    assert audit["prompts"] == 2
    text = describe_audit("train", audit)
    assert "train: 13 rows read = 5 kept + 8 left out (1 malformed, 3 empty response" in text


def test_a_file_of_which_nothing_is_left_can_be_described():
    _, audit = encode([pair("q", "", "")])
    assert "1 rows read = 0 kept + 1 left out" in describe_audit("x", audit)


def test_a_row_with_an_empty_or_doubled_response_is_left_out_whole():
    responses = (["a", "", "b"], ["a", "b", "a"], ["a", "b", "c"])
    rows = [several("q", three, [1, 2, 3]) for three in responses]
    _, audit = encode(rows)
    assert audit["left_out"]["empty response"] == 1
    assert audit["left_out"]["identical responses"] == 1
    assert (audit["kept"], audit["pairs"]) == (1, 3)


def test_equal_responses_that_are_not_compared_are_no_reason():
    _, audit = encode([several("q", ["a", "b", "b"], [1, 2, 2])])
    assert (audit["kept"], audit["pairs"]) == (1, 2)


def test_duplicates_are_told_apart_by_prompt_and_by_side():
    _, audit = encode([pair("q", "a", "b"), pair("r", "a", "b"), pair("q", "a", "c")])
    assert (audit["duplicates"], audit["contradictions"]) == (0, 0)


def test_the_longer_response_is_counted_with_ties_as_half():
    answers = [("xxxxx", "y"), ("z", "v"), ("zz", "uuuuu"), ("z", "vvv")]
    _, audit = encode([pair("q", chosen, rejected) for chosen, rejected in answers])
    assert audit["longer_wins"] == (1 + 0.5 + 0 + 0) / 4


def test_the_share_of_the_prompts_is_that_of_their_tokens():
    rows = [pair("q " * 9, "a", "b"), several("q", ["a", "bb", "ccc"], [1, 2, 3])]
    examples, audit = encode(rows)
    prompt_tokens = all_tokens = 0
    for example in examples:
        prompt_tokens += example.start * len(example.sequences)
        all_tokens += sum(map(len, example.sequences))
    assert audit["prompt_share"] == pytest.approx(prompt_tokens / all_tokens)


# ---------------------------------------------------------------- tokens in a folder


def some_examples():
    """Pairs and rows of K responses, with and without margins and true rewards."""
    rows = []
    for i in range(5):
        rows.append(pair(f"q{i}", "good " * (i + 1), "bad", margin=i / 2))
    rows.append(pair("gold", "a", "b", gold_chosen=1.5, gold_rejected=-2))
    rows.append(several("é?", ["a", "bb", "ccc"], [1, 2, 2], margin=0.5))
    return encode(rows)[0]


def assert_same(one: Example, other: Example):
    """The same example, token for token."""
    assert [ids.tolist() for ids in one.sequences] == [ids.tolist() for ids in other.sequences]
    assert one.pairs() == other.pairs()
    for field in ("scores", "start", "margin", "gold", "prompt"):
        message = f"{field} is lost on the way to the file, or back"
        assert getattr(one, field) == getattr(other, field), message


def test_what_was_written_is_read_back(tmp_path):
    examples = some_examples()
    write_tokens(tmp_path, examples[:4], examples[4:])
    stored = Examples(tmp_path)
    assert len(stored) == len(examples)
    assert stored.numbers(held_out=False).tolist() == [0, 1, 2, 3]
    assert stored.numbers(held_out=True).tolist() == [4, 5, 6]
    for number, example in enumerate(examples):
        assert_same(stored[number], example)
        assert stored.lengths[number] == max(map(len, example.sequences))
    assert stored.where([6, 0]) == ["f:2", "f:1"]


def test_ids_stay_in_the_file_until_they_are_needed(tmp_path):
    write_tokens(tmp_path, some_examples(), [])
    stored = Examples(tmp_path)
    assert isinstance(stored.ids, np.memmap)
    assert isinstance(stored[0].sequences[0].base, np.memmap), "the ids were copied"


def test_a_batch_is_the_same_from_memory_and_from_the_file(tmp_path):
    examples = some_examples()
    write_tokens(tmp_path, examples, [])
    stored = Examples(tmp_path)
    ours, theirs = collate(examples, 0), collate([stored[i] for i in range(len(stored))], 0)
    for name, tensor in vars(ours).items():
        torch.testing.assert_close(getattr(theirs, name), tensor, msg=name)


@pytest.mark.parametrize("field", ["ids", "half an id", "row", "start", "offset", "tokens", "score"])
def test_a_damaged_file_of_tokens_is_named(field, tmp_path):
    write_tokens(tmp_path, some_examples(), [])
    path = tmp_path / ("ids.bin" if "id" in field else "records.bin")
    content = path.read_bytes()
    if "id" in field:
        content = content[: -400 if field == "ids" else -3]
    else:
        records = np.frombuffer(content, RECORD).copy()
        records[field][1] += 1000
        if field == "score":
            records[field] = 1  # no row has a pair
        content = records.tobytes()
    path.write_bytes(content)
    with pytest.raises(DataError, match="ids.bin or records.bin is damaged; delete the folder"):
        Examples(tmp_path)


def test_equal_prompts_have_equal_numbers(tmp_path):
    examples, _ = encode([pair("q", "a", "b"), pair("r", "a", "b"), pair("q", "c", "d", id=3)])
    write_tokens(tmp_path, examples, [])
    first, second, third = Examples(tmp_path)[0], Examples(tmp_path)[1], Examples(tmp_path)[2]
    assert first.prompt == third.prompt != second.prompt
    assert first.prompt == prompt_hash(pair("q", "", ""))


# ---------------------------------------------------------------- the rows of a step


@pytest.mark.parametrize("count, batch_size", [(64, 64), (65, 64), (500, 64), (7, 3), (3, 8)])
def test_every_row_comes_once_an_epoch_in_steps_of_equal_size(count, batch_size):
    rows = np.arange(count) * 10
    steps = -(-count // batch_size)
    for epoch in range(2):
        seen, sizes = [], []
        for step in range(epoch * steps, (epoch + 1) * steps):
            of_step = rows_of_step(rows, step, batch_size, seed=0)
            seen += of_step.tolist()
            sizes.append(len(of_step))
        assert sorted(seen) == rows.tolist(), "a row is left out of an epoch, or comes twice"
        assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1, sizes


def test_seed_and_epoch_change_the_order_and_nothing_else_does():
    rows = np.arange(50)
    orders = set()
    for seed, epoch in itertools.product((0, 1), (0, 1)):
        orders.add(tuple(rows_of_step(rows, epoch, 50, seed).tolist()))
    assert len(orders) == 4, "every epoch, or every seed, has the same order"
    assert tuple(rows.tolist()) not in orders, "the rows are not shuffled"


def test_a_step_is_a_function_of_its_number_so_that_a_resumed_run_needs_no_other_memory():
    rows = np.arange(30)
    in_order = [rows_of_step(rows, step, 8, seed=3).tolist() for step in range(12)]
    epoch_order.cache_clear()
    for step in (11, 0, 5, 4, 7):
        assert rows_of_step(rows, step, 8, seed=3).tolist() == in_order[step]


# ---------------------------------------------------------------- micro-batches

LENGTHS = np.random.default_rng(0).integers(5, 500, size=100)


@pytest.mark.parametrize("count", [4, 5, 26, 64])
@pytest.mark.parametrize("ranks, accumulation", [(1, 1), (2, 1), (1, 3), (2, 2), (4, 2), (4, 100)])
def test_each_row_is_on_one_rank_and_all_ranks_have_equally_many_micro_batches(
    count, ranks, accumulation
):
    rows = np.random.default_rng(1).permutation(100)[:count]
    seen, counts = [], set()
    for rank in range(ranks):
        mine = micro_batches(rows, LENGTHS, accumulation, rank, ranks)
        counts.add(len(mine))
        for micro_batch in mine:
            assert len(micro_batch) > 0, "an empty micro-batch has no forward pass"
            seen += micro_batch.tolist()
    assert sorted(seen) == sorted(rows.tolist()), "a row is lost, or counted twice"
    assert counts == {min(accumulation, count // ranks)}, "the ranks would wait forever"


def test_micro_batches_hold_rows_of_similar_length_and_ranks_have_equally_much_to_do():
    rows = np.arange(100)
    padded, plain, work = 0, 0, []
    for rank in range(2):
        mine = micro_batches(rows, LENGTHS, 5, rank, 2)
        padded += sum(len(part) * LENGTHS[part].max() for part in mine)
        plain += sum(len(part) * LENGTHS[part].max() for part in np.array_split(rows[rank::2], 5))
        work.append(sum(LENGTHS[part].sum() for part in mine))
    assert padded < 1.25 * LENGTHS.sum() < 0.8 * plain
    assert max(work) < 1.05 * min(work)


def test_fewer_rows_than_processes_are_refused_with_the_option_to_change():
    with pytest.raises(DataError, match="3 rows in a step, 4 processes: raise --batch-size"):
        micro_batches(np.arange(3), LENGTHS, 1, 0, 4)


# ---------------------------------------------------------------- a batch


def test_a_batch_is_padded_on_the_right_and_its_mask_says_what_is_text():
    examples = some_examples()
    batch = collate(examples, pad_id=7)
    sequences = [ids for example in examples for ids in example.sequences]
    longest = max(map(len, sequences))
    assert batch.input_ids.shape == batch.attention_mask.shape == (len(sequences), longest)
    for row, ids in enumerate(sequences):
        pads = longest - len(ids)
        assert batch.input_ids[row].tolist() == ids.tolist() + [7] * pads
        mask = batch.attention_mask[row].tolist()
        assert mask == [1] * len(ids) + [0] * pads, "the mask says where a text ends"
    assert batch.inputs().keys() == {"input_ids", "attention_mask"}


def test_pairs_point_at_the_sequences_of_their_own_row():
    rows = [several("q", ["good", "fair", "bad", "awful"], [1, 2, 3, 3]), pair("r", "yes", "no")]
    tokenizer = tiny_tokenizer()
    batch = collate(encode(rows, tokenizer)[0], pad_id=0)
    said = []
    for chosen, rejected in zip(batch.chosen, batch.rejected):
        texts = []
        for row in (chosen, rejected):
            ids = batch.input_ids[row][batch.start[row] :]
            texts.append(text_of(tokenizer, ids).partition("</s>")[0].strip())
        said.append(tuple(texts))
    assert said == [("good", "fair"), ("good", "bad"), ("good", "awful"), ("fair", "bad"),
                    ("fair", "awful"), ("yes", "no")], "responses to other prompts are compared"


def test_start_is_where_the_response_begins():
    tokenizer = tiny_tokenizer(bos=True)
    batch = collate(encode([pair("the mat", "x", "yy"), pair("", "v", "w")], tokenizer)[0], 0)
    assert batch.start.shape == (4, 1)
    assert batch.start[2:].flatten().tolist() == [0, 0]
    for row in range(2):
        assert text_of(tokenizer, batch.input_ids[row, : batch.start[row]]).endswith("Assistant:")


def test_the_pairs_of_a_row_weigh_one_together_and_have_its_margin():
    rows = [pair("r", "yes", "no"), several("q", ["a", "b", "c"], [1, 2, 3], margin=0.5)]
    batch = collate(encode(rows)[0], pad_id=0)
    assert batch.weight.tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3]), (
        "a prompt counts once: the pairs of a row weigh as much together as one pair"
    )
    assert batch.margin.tolist() == [0, 0.5, 0.5, 0.5]
    assert batch.weight.dtype == batch.margin.dtype == torch.float32


@pytest.mark.parametrize("ranks, accumulation", [(1, 1), (1, 4), (2, 1), (2, 3), (3, 2)])
def test_weights_sum_to_1_over_all_micro_batches_and_ranks(ranks, accumulation):
    """So Σ weight · loss is the mean over the rows of the step, however the step is cut."""
    examples = some_examples()
    lengths = np.array([max(map(len, example.sequences)) for example in examples])
    step = np.arange(len(examples))
    of_rows = dict.fromkeys(step.tolist(), 0.0)
    for rank in range(ranks):
        for part in micro_batches(step, lengths, accumulation, rank, ranks):
            batch = collate([examples[i] for i in part], 0, rows_in_step=len(step))
            pairs = iter(batch.weight.tolist())
            for i in part:
                of_rows[i] += sum(next(pairs) for _ in examples[i].pairs())
    assert list(of_rows.values()) == pytest.approx([1 / len(step)] * len(step))


def test_a_batch_moves_to_a_device_with_all_its_tensors():
    moved = collate(some_examples(), 0).to("meta")
    for name, tensor in vars(moved).items():
        assert tensor.device.type == "meta", name
