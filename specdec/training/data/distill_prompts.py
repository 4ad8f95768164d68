"""The prompts that the verifier answers when training data are distilled."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from specdec.core.errors import RowError, UserError
from specdec.decoding.request import Request
from specdec.prompts import Conversation
from specdec.training.data.answers import end_of, prompts_of_answers, tokens_alone
from specdec.training.data.left_out import LeftOut
from specdec.training.data.reading import Source
from specdec.training.data.sources import Sources, plain_text
from specdec.training.data.text import Document, Passage, Written, documents


@dataclass(frozen=True)
class Asking:
    """Turns training data into requests, one for each answer, under a name that is its own.

    Every turn of an assistant is asked for, after the messages before it; texts are joined, and the
    first `prompt_tokens` of each block of `block_length` tokens are to be continued; of written
    tokens it is their prompt. A model with an encoder is asked for texts behind sources alone.
    """

    tokenizer: PreTrainedTokenizerBase
    options: Mapping[str, Any]  # of the chat template
    prompt_tokens: int
    block_length: int
    sources: Sources | None = None  # of a model with an encoder

    def requests(self, source: Source, left_out: LeftOut) -> Iterator[Request]:
        """Yield them in the order of the data; what cannot be asked is counted.

        Raises:
            UserError: there is no such data, a conversation and no chat template, or plain text
                for a model with an encoder.
        """
        blocks = PromptBlocks(self.block_length)
        for found in documents(source):
            document = found.document
            if not isinstance(document, Passage) or document.ends:
                left_out.num_rows += 1
            try:
                if isinstance(document, RowError):
                    raise document
                if self.sources is not None and isinstance(document, Passage):
                    raise plain_text(source)
                if isinstance(document, Passage):
                    token_ids = tokens_alone(document.text, self.tokenizer, found.where)
                    blocks.add(token_ids + (end_of(self.tokenizer) if document.ends else []))
                    yield from self._of_blocks(blocks)
                else:
                    row = f"row {left_out.num_rows}"
                    yield from self._of_row(document, row, found.where, left_out, source)
            except RowError as error:
                left_out.add_row(error)
        blocks.end()
        yield from self._of_blocks(blocks)

    def _of_blocks(self, blocks: "PromptBlocks") -> Iterator[Request]:
        for number, block in blocks.full():
            if len(block) >= self.prompt_tokens:
                yield Request(f"block {number}", block[: self.prompt_tokens])

    def _of_row(
        self, document: Document, row: str, where: str, left_out: LeftOut, source: Source
    ) -> Iterator[Request]:
        if self.sources is not None:
            yield Request(row, self.sources.prompt(document, self.tokenizer, where), where=where)
            return
        if isinstance(document, Written):
            yield Request(row, document.token_ids[: document.num_prompt_tokens], where=where)
            return
        assert isinstance(document, Conversation)
        if not self.tokenizer.chat_template:
            reason = "the tokenizer has no chat template; expected plain `text`"
            raise UserError(f"{source}: {reason}")
        errors: list[RowError] = []
        number = 0
        for turn, prompt in prompts_of_answers(document, self.tokenizer, self.options, where):
            if isinstance(prompt, RowError):
                errors.append(prompt)
            else:
                number += 1
                token_ids = tokens_alone(prompt, self.tokenizer, where)
                yield Request(f"{row} message {turn + 1}", token_ids, where=where)
        if not number:
            raise errors[0] if errors else RowError(where, "no answer to train on")
        for error in errors:
            left_out.add_answer(error)


class PromptBlocks:
    """Tokens of texts, one behind the other, in blocks of `length`; the last may be shorter."""

    def __init__(self, length: int):
        self._length = length
        self._held: list[int] = []
        self._number = 0
        self._is_over = False

    def add(self, token_ids: list[int]) -> None:
        """Add tokens."""
        self._held += token_ids

    def end(self) -> None:
        """Say that no others follow."""
        self._is_over = True

    def full(self) -> Iterator[tuple[int, list[int]]]:
        """Yield the blocks that are full by now, each once and under its number."""
        start, least = 0, 1 if self._is_over else self._length
        while len(self._held) - start >= least:
            yield self._number, self._held[start : start + self._length]
            start += self._length
            self._number += 1
        del self._held[:start]
