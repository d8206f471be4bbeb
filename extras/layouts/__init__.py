"""layouts: rows as other projects publish them -> the native row of data.parse_row.

Preference data say the same thing in many layouts: a prompt, its responses, and which of them is
better. The native row says it like this:

    {"prompt": "q", "chosen": "good", "rejected": "bad"}
    {"prompt": "q", "responses": ["bad", "good", "fair"], "scores": [0, 2, 1]}

Here every layout is one short function, row -> row. Its docstring is an example. It rewrites what
it knows, and returns any other row as it is. A row goes through all of them in order, because
layouts mix: a system turn beside a transcript, a history beside messages.

    notations.py    how a dialogue is written down: lists of texts, ShareGPT's names, transcripts
    prompts.py      where the prompt is: in fields of other names, or at the start of each response
    fields.py       reading and changing the fields of a row

Three things make this worth a folder:

    one reading      Training, report, score and rank all read a row here. If scoring rendered a
                     prompt in another way than training, the rewards would mean nothing.
    nothing unread   A field that says something about the dialogue is used, or the row is refused.
                     Answers train without their system turn too, and nobody notices.
    no guessing      A row with two different prompts is refused.

It costs almost nothing. There is no option: data.is_native decides for each row.
tests/extras/test_layouts.py shows that a dialogue is the same Row in every layout.
"""
from data import DataError
from extras.layouts.notations import human_assistant, rewardbench, sharegpt
from extras.layouts.prompts import history, messages, question, system, whole_dialogues

LAYOUTS = (
    rewardbench,
    sharegpt,
    human_assistant,
    question,
    messages,
    history,  # before whole_dialogues, which then sees the whole prompt
    whole_dialogues,
    system,  # last: whole dialogues do not repeat it
)


def to_native(row: dict, where: str, options: dict | None = None) -> dict:
    """A row in any layout below -> a native row.  Raises: DataError naming row and field."""
    found = ", ".join(row) or "nothing"
    native = {}
    for field, value in row.items():
        if value is not None:  # tables have null where a row has no such field
            native[field] = value
    for layout in LAYOUTS:
        native = layout(native, where)
    if "prompt" in native:
        return native
    raise DataError(f"{where}: neither a prompt nor responses (found: {found})")
