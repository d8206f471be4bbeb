"""report_texts.py: the pairs behind the figures of a report, one by one.

    python eval.py report RUN --data pairs.jsonl --details                      the worst mistakes
    python eval.py report RUN --data pairs.jsonl --predictions scored.jsonl     every pair

An accuracy says how often a model is wrong, and not where. The pairs that it ranks wrong with the
largest gaps show what it has learned instead: often a label that is wrong, or a taste for length.
With a line for every pair two models can be compared pair by pair.

extras/report_details.py prints and writes what these functions give.
tests/extras/test_report_details.py compares them with the rewards of the pairs.
"""
import operator

MISTAKES = 3  # how many are shown


def predictions(rows, tokenizer):
    """What --predictions keeps of each pair."""
    for example, r in rows:
        about = {"where": example.row.where}
        for field in ("id", "source", "subset"):
            if field in example.row.raw:
                about[field] = example.row.raw[field]
        for better, worse in example.pairs():
            line = about | {"pair": [better, worse]}  # which of the responses, counted from 0
            line["chosen"] = float(r[better])
            line["rejected"] = float(r[worse])
            line["scored_tokens"] = []
            for index in (better, worse):
                last = int(example.sequences[index][-1])
                token = tokenizer.backend.id_to_token(last)
                line["scored_tokens"].append({"id": last, "token": token})
            yield line


def worst_mistakes(rows):
    """The pairs that are ranked wrong with the largest gaps. A tie is no mistake."""
    mistakes = []
    for example, r in rows:
        for better, worse in example.pairs():
            if r[better] < r[worse]:
                row = example.row
                mistakes.append({
                    "where": row.where,
                    "margin": float(r[better] - r[worse]),
                    "prompt": text_of(row.prompt),
                    "chosen": text_of(row.responses[better]),
                    "rejected": text_of(row.responses[worse]),
                })
    mistakes.sort(key=operator.itemgetter("margin"))
    return mistakes[:MISTAKES]


def text_of(messages):
    """What is said in some messages."""
    return "\n".join(message["content"] for message in messages)
