"""What a model with an encoder is trained on: a source, and the text that its decoder writes."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from specdec.core.errors import RowError, Unfit, UserError, first_line, require
from specdec.core.protocols import SourceReader
from specdec.prompts import Conversation, Message
from specdec.prompts.message import has_content
from specdec.training.data.answers import end_of
from specdec.training.data.left_out import LeftOut
from specdec.training.data.reading import Reading, Source
from specdec.training.data.text import Document, Passage, Written, first_document

NOT_BESIDE_ENCODER = (
    "the verifier has an encoder; expected train=medusa or train=chained, with joint=false"
)


@dataclass(frozen=True)
class Sources:
    """How rows become samples: a source, the token that the decoder begins with, and a text.

    A row has one message of a user, the source, and one of an assistant, the text. Both are
    tokenised as the tokenizer does by itself; no chat template is asked. Tokens that are written
    already stay as they are.

    Args:
        start_id: the token that the decoder begins with.
        max_source: tokens that the encoder reads.
        max_target: tokens that the decoder reads, its first one included.
    """

    start_id: int
    max_source: int
    max_target: int

    @classmethod
    def of(cls, model: object) -> "Sources | None":
        """Ask a model; None: it has no encoder."""
        if not isinstance(model, SourceReader):
            return None
        return cls(model.start_id, model.max_source, model.max_target)

    def prompt(
        self, document: Document, tokenizer: PreTrainedTokenizerBase, where: str
    ) -> list[int]:
        """Return a row's source and the first token of the text.

        Raises:
            RowError: there is no source, or it is too long; `where` is how the message begins.
        """
        if isinstance(document, Written):
            *source, start = document.token_ids[: document.num_prompt_tokens]
            if start != self.start_id:
                reason = f"a prompt that does not end with {self.start_id}, where the text begins"
                raise RowError(where, reason)
        else:
            assert isinstance(document, Conversation)
            question, _ = _pair(document, where)
            source = tokens_by_itself(question, tokenizer, where)
        if not source:
            raise RowError(where, "an empty source")
        if len(source) > self.max_source:
            raise RowError(where, f"a source of more than the encoder's {self.max_source} tokens")
        return [*source, self.start_id]

    def sample(
        self,
        document: Conversation | Written,
        tokenizer: PreTrainedTokenizerBase,
        where: str,
        left_out: LeftOut,
    ) -> tuple[list[int], list[int]]:
        """Return a row's prompt and its text, which ends with the tokenizer's end token.

        What the decoder cannot read is cut and counted.

        Raises:
            RowError: there is no source or no text; `where` is how the message begins.
        """
        prompt = self.prompt(document, tokenizer, where)
        if isinstance(document, Written):
            text = list(document.token_ids[document.num_prompt_tokens :])
        else:
            _, answer = _pair(document, where)
            text = tokens_by_itself(answer, tokenizer, where, is_target=True)
            end = end_of(tokenizer)
            text += end if text[-1:] != end else []
        room = self.max_target - 1
        if len(text) > room:
            left_out.add_note(f"more than the {room} tokens that the decoder writes", where)
        return prompt, text[:room]


def _pair(talk: Conversation, where: str) -> tuple[str, str]:
    """Return what is asked and what is answered.

    Raises:
        RowError: it is no such pair.
    """
    if [message.role for message in talk.messages] != ["user", "assistant"]:
        raise RowError(where, "several turns, or none; expected a user's and an assistant's")
    question, answer = talk.messages
    if not has_content(answer.content):
        raise RowError(where, "an empty answer")
    return _text(question, where), _text(answer, where)


def _text(message: Message, where: str) -> str:
    try:
        return message.text(where)
    except UserError:
        raise RowError(where, f"a {message.role}'s message that is more than text") from None


def tokens_by_itself(
    text: str, tokenizer: PreTrainedTokenizerBase, where: str, is_target: bool = False
) -> list[int]:
    """Tokenize one text with the special tokens that its side has.

    Raises:
        RowError: the tokenizer does not take it; `where` is how the message begins.
    """
    try:
        # Marian reads and writes two languages, each with pieces of its own.
        found: Any = tokenizer(text_target=text) if is_target else tokenizer(text)
        return list(found["input_ids"])
    except Exception as error:  # whatever a tokenizer makes of text that it cannot take
        raise RowError(where, f"cannot be tokenized ({first_line(error)})") from None


def require_no_source(model: object, what: str) -> None:
    """Refuse a verifier with an encoder beside what is trained otherwise than heads alone.

    Raises:
        UserError: it has one; `what` is how the message begins.
    """
    if isinstance(model, SourceReader):
        raise Unfit(f"{what}: {NOT_BESIDE_ENCODER}")


def require_pairs(source: Source) -> None:
    """Refuse data whose first row is plain text, before any model is loaded.

    Raises:
        UserError: it is; or there is no such data.
    """
    if isinstance(first_document(source), Passage):
        raise plain_text(source)


def require_untemplated(reading: Reading) -> None:
    """Refuse options of a chat template, which is not asked beside an encoder.

    Raises:
        UserError: there are some.
    """
    given, expected = reading.options, "none: beside an encoder no chat template is asked"
    require(not given, "data.template_options", given, expected)


def plain_text(source: Source) -> UserError:
    """Say that plain text is nothing to train on beside an encoder."""
    expected = "expected rows with `messages`, a user's (the source) and an assistant's (the text)"
    return UserError(f"{source}: plain text, and the verifier has an encoder; {expected}")
