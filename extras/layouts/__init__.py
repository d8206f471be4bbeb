"""layouts: rows as other projects publish them -> the native row of data.parse_row.

Preference data say the same thing in many layouts: a prompt, its responses, and which of them is
better. The native row says it like this:

    {"prompt": "q", "chosen": "good", "rejected": "bad"}
    {"prompt": "q", "responses": ["bad", "good", "fair"], "scores": [0, 2, 1]}

Here every layout is one short function, row -> row. Its docstring is an example. It rewrites what
it knows, and returns any other row as it is. A row goes through all of them in order, because
layouts mix: a system turn beside a transcript, a history beside messages.

    verdicts.py     two answers and a verdict: a choice, a label, two scores
    arenas.py       two answers and the votes of an arena
    ranked.py       the better answer under another name; several answers with scores or ranks
    notations.py    how a dialogue is written down: lists of texts, ShareGPT's names, transcripts
    prompts.py      where the prompt is: in fields of other names, or at the start of each response
    judged.py       the scores of both sides: they check the label, and can make a margin
    fields.py       reading and changing the fields of a row
    unread.py       what nobody reads: pictures, and text that may be the prompt

Four things make this worth a folder:

    one reading      Training, report, score and rank all read a row here. If scoring rendered a
                     prompt in another way than training, the rewards would mean nothing.
    nothing unread   A field that says something about the dialogue is used, or the row is refused.
                     Answers train without their system turn too, and nobody notices.
    no guessing      A row with two different prompts is refused, and so is a verdict that is not
                     in the published list. What a layout has read leaves the row; the rest stays.
    names decide     Whether a layout applies depends on names of fields, not on what they say.

It costs almost nothing. No option chooses a layout: data.is_native and the names decide for each
row. Where a file has names of its own, the options that end in -field tell them.
tests/extras/test_layouts.py shows that a dialogue is the same Row in every layout, and
tests/extras/test_layouts_published.py has a row of every data set that is named here.
"""
from data import NATIVE, UNREAD, DataError
from extras.layouts.arenas import arena, arena_55k, ppe_preference
from extras.layouts.fields import renamed
from extras.layouts.judged import judged
from extras.layouts.notations import extra_id, human_assistant, json_text, rewardbench
from extras.layouts.notations import sharegpt, tools
from extras.layouts.prompts import history, messages, question, system, whole_dialogues
from extras.layouts.ranked import ms_swift, nectar, ppe_best_of_k, stack_exchange, ultrafeedback
from extras.layouts.unread import media, refuse_meaningful, refuse_unread_text
from extras.layouts.verdicts import helpsteer2_preference, helpsteer3, judgebench
from extras.layouts.verdicts import openai_preference
from extras.layouts.verdicts import pku_saferlhf, shp, summaries, webgpt

LAYOUTS = (
    media,  # first: what is refused needs no reading
    tools,
    json_text,
    # Answers under names of their own. Only one of these applies to a row.
    summaries,
    webgpt,
    shp,
    pku_saferlhf,
    helpsteer2_preference,
    helpsteer3,
    judgebench,
    openai_preference,
    ppe_preference,
    arena,
    arena_55k,
    stack_exchange,
    nectar,
    ultrafeedback,
    ppe_best_of_k,
    # From here on the answers are under our names.
    rewardbench,
    sharegpt,
    ms_swift,  # after sharegpt, which makes `messages` of `conversations`
    human_assistant,
    extra_id,
    question,
    messages,
    history,  # before whole_dialogues, which then sees the whole prompt
    whole_dialogues,
    system,  # last: whole dialogues do not repeat it
)


def to_native(
    row: dict, where: str, options: dict | None = None, notes: list[str] | None = None
) -> dict:
    """A row in any layout below -> a native row.

    Args:   options: {"prompt": "query", "chosen": "good"}: names of this file for fields of ours.
                     "prompt": "" says that there is no prompt. "margin_from_scores": judged.py.
            notes:   what the audit should mention is appended to it.
    Raises: DataError naming row and field.
    """
    options = options or {}
    notes = [] if notes is None else notes
    names = {}
    for field in ("prompt", "chosen", "rejected"):
        if field in options:
            names[field] = options[field]
    found = ", ".join(row) or "nothing"
    native = {}
    for field, value in renamed(row, names, where).items():
        if value is not None:  # tables have null where a row has no such field
            native[field] = value
    for layout in LAYOUTS:
        native = layout(native, where)
    native = judged(native, where, notes, "margin_from_scores" in options)
    if "prompt" not in native:
        raise DataError(f"{where}: neither a prompt nor responses (found: {found})")
    if names.get("prompt") != "":
        refuse_unread_text(native, where)
    refuse_meaningful(native, where)
    notes += [UNREAD + field for field in native if field not in NATIVE]
    return native
