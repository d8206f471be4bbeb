"""chat_template.py: tokenizers that come with a chat template of their own.

A chat model has learned from text only. Its dialogues were turned into text by a *chat template*,
a small program in the language jinja2, which stands in the folder of its tokenizer:

    {% for m in messages %}<|im_start|>{{ m.role }}         <|im_start|>user
    {{ m.content }}<|im_end|>                        ->     Hi<|im_end|>
    {% endfor %}                                            <|im_start|>assistant
                                                            Hello.<|im_end|>

A reward model that starts from a chat model has to be given the very text that its template
writes. With another text nothing fails: the rewards are only worse. The traps, by their symptoms:

    two BOS       Llama 2's template writes <s>, and its tokenizer puts another <s> before every
                  text. No text that the model learned from had two. So the template alone
                  decides, and Tokenizer.encode adds none.
    end token     Qwen's base tokenizer names <|endoftext|> as its eos, but its turns end in
                  <|im_end|>. With the eos there would be two end tokens, and the reward would be
                  read at one that never ends an answer. So we render a dialogue and look.
    newline       Most templates write a newline after the end token. It would be the last token,
                  but only for those who do not strip the text. So a sequence stops at the end
                  token. The template that is saved with a reward model stops there too, because
                  transformers and vLLM render with the template alone.
    think block   Qwen3's template writes an empty <think></think> before the last answer, and
                  deletes the thoughts of earlier ones. So the text of a prompt is not always the
                  beginning of the text of prompt and response. Tokenizer.encode_row therefore
                  takes what all of them have in common.

    cut answers   Some templates delete the thoughts of an answer, or do not write its tool calls.
                  The audit counts such rows (extras/template_changes.py).
    no assistant  A template for prompts only never writes what the assistant says: all answers are
                  equal. It is refused when it is loaded.

    other place   A head that is trained already was read somewhere: TRL reads at the newline after
                  <|im_end|>, or one token before </s> where the pad is </s> too. Read elsewhere,
                  rewards are plausible and wrong. So for such a head nothing is cut or added, and
                  the last token that is not the pad counts, as in transformers.

A template is somebody else's program, in a sandbox (extras/jinja_templates.py).

It costs less than 0.1 ms a dialogue, once, when a file is tokenized. It is used where a tokenizer's
folder has a chat template, or with --chat-template FILE. tests/extras/test_chat_template.py and
tests/extras/test_tokenizer_folders.py show that texts and ids are those of transformers 5
(apply_chat_template, whose rules these are), up to the end token.
"""
import datetime
import os

import numpy as np
import tokenizers

from data import DataError, Messages, Row, Tokenizer
from extras import template_changes
from extras.jinja_templates import compile_template, find_templates, one_line, stop_the_clock
from extras.template_changes import THOUGHTS, said_in, stands_in

QUESTION = {"role": "user", "content": "Who goes there?"}
DIALOGUE = [QUESTION, {"role": "assistant", "content": "Only me."}]


class TemplateTokenizer(Tokenizer):
    """A Tokenizer whose text, BOS and end token are those of the folder's chat template."""

    rendering = "by the chat template"

    def __init__(self, backend: tokenizers.Tokenizer, config: dict, where="tokenizer"):
        self.sources = {}
        self.templates = {}
        for name, source in find_templates(config, where).items():
            self.sources[name] = stop_the_clock(source, datetime.datetime.now())
            self.templates[name] = compile_template(self.sources[name], where)
        head_config = config.get("head_config")
        # OpenRLHF cuts newlines, and reads at the end token whatever the pad is: as we do.
        from_openrlhf = "value_head_prefix" in (head_config or {})
        self.as_rendered = head_config is not None and not from_openrlhf
        self.trained_pad_id = head_config.get("pad_token_id") if self.as_rendered else None
        super().__init__(backend, config, where)
        pad_id = self.trained_pad_id
        if not isinstance(pad_id, int) or pad_id < 0 or not backend.id_to_token(pad_id):
            self.trained_pad_id = None  # no token: transformers then takes the last one
        if self.trained_pad_id is not None:
            self.saved_pad_id = self.trained_pad_id
        if not stands_in(self.render(DIALOGUE), said_in(DIALOGUE)):
            raise DataError(f"{where}: the chat template does not write what is said in a dialogue")

    def render(
        self, messages: Messages, add_generation_prompt: bool = False, tools: list | None = None
    ) -> str:
        """The template's text for these messages, the same as transformers'.

        Raises: DataError where the template refuses them.
        """
        if not add_generation_prompt:
            return self.run(messages, False, tools)
        try:
            return self.run(messages, True, tools)
        except DataError:  # some templates take a prompt only together with its answer
            texts = []
            for answer in ("A", "B"):
                dialogue = [*messages, {"role": "assistant", "content": answer}]
                texts.append(self.run(dialogue, False, tools))
            return os.path.commonprefix(texts)

    def run(self, messages: Messages, add_generation_prompt: bool, tools: list | None) -> str:
        """What the template writes.  Raises: DataError."""
        has_tools = tools is not None and "tool_use" in self.templates
        name = "tool_use" if has_tools else "default"
        values = self.names | {
            "documents": None,
            "messages": list(map(with_thoughts, messages)),
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self.templates[name].render(values)
        except Exception as e:  # somebody else's program may raise anything
            reason = one_line(e)
            raise DataError(f"{self.where}: the chat template refuses it ({reason})") from None

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Rendered texts -> ids, int32. What a template writes after the end token is cut.

        For a head that is trained already nothing is cut or added, and the last token is the last
        one that is not config.json's pad_token_id: where transformers reads the reward.
        """
        if self.as_rendered:
            encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
            return [without_pads(encoding.ids, self.trained_pad_id) for encoding in encodings]
        cut = []
        for text in texts:
            stripped = text.rstrip()
            cut.append(stripped if stripped.endswith(self.end_token) else text)
        return super().encode(cut)

    def changes(self, row: Row, prompt_text: str, texts: list[str]) -> list[str]:
        """Notes on what is not in the texts as the row has it."""
        return template_changes.notes(row, prompt_text, texts)

    def find_bos(self) -> str:
        """The BOS token if the template writes one, else ""."""
        bos = self.names.get("bos_token", "")
        return bos if self.render(DIALOGUE).startswith(bos) else ""

    def find_end_token(self) -> str:
        """The token that the template closes an answer with, else the eos_token.

        Raises: DataError where there is neither.
        """
        if self.as_rendered:  # whatever is last: for the log
            return self.backend.id_to_token(int(self.encode([self.render(DIALOGUE)])[0][-1]))
        text = self.render(DIALOGUE).rstrip()
        endings = []
        for token in self.backend.get_added_tokens_decoder().values():
            if token.special and text.endswith(token.content):
                endings.append(token.content)
        if endings:
            return max(endings, key=len)
        return super().find_end_token()

    def chat_template(self) -> list[dict]:
        """The templates as they are saved: the date stands still, and answers are closed."""
        saved = []
        for name, source in self.sources.items():
            saved.append({"name": name, "template": self.closed(source)})
        return saved[0]["template"] if len(saved) == 1 else saved

    def closed(self, source: str) -> str:
        """A template, changed so that an answer ends at the end token, and nothing follows."""
        text = self.render(DIALOGUE)
        if self.as_rendered or text.endswith(self.end_token):
            return source
        if text.rstrip().endswith(self.end_token):
            closed = "text.rstrip()"
        else:
            closed = "text + eos_token"
        answered = "messages and messages[-1]['role'] == 'assistant' and not add_generation_prompt"
        # The plus signs keep white space that jinja2 would trim beside these two tags.
        return (
            "{% set text +%}" + source.removesuffix("\n") + "{%+ endset %}"
            "{% if " + answered + " %}{{ " + closed + " }}{% else %}{{ text }}{% endif %}"
        )


def without_pads(ids: list[int], pad_id: int | None) -> np.ndarray:
    """Token ids up to the last one that is not the pad."""
    end = len(ids)
    while end > 1 and ids[end - 1] == pad_id:
        end -= 1
    return np.array(ids[:end], dtype=np.int32)


def with_thoughts(message: dict) -> dict:
    """The message with its thoughts under the names that templates know."""
    for field in THOUGHTS:
        if field in message:
            thoughts = message[field]
            return {"thinking": thoughts} | message | {"reasoning_content": thoughts}
    return message
