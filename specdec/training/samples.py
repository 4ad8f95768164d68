"""Training samples for heads: token ids, and which of them count."""

from collections.abc import Sequence

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from specdec.core.errors import UserError
from specdec.prompts import Message
from specdec.training.blocks import Blocks
from specdec.training.objective import Batch
from specdec.training.text import joined, read_documents

Sample = tuple[Tensor, Tensor]  # token ids [T] and which of them count [T]


class Samples:
    """Batches of a data file, in an order that a seed fixes.

    Plain text is cut into blocks that count whole. Of a conversation only what the assistant says
    counts; each one is a sample, cut at `max_length` tokens.

    Raises:
        UserError: the file is no training text, holds both kinds, or a conversation that cannot be
            rendered or has no turn of the assistant within `max_length` tokens.
    """

    def __init__(
        self,
        path: str,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        seed: int = 0,
        field: str = "data.path",
    ):
        documents = read_documents(path, field)
        texts = [document for document in documents if isinstance(document, str)]
        conversations = [document for document in documents if not isinstance(document, str)]
        if texts and conversations:
            raise UserError(f"{field}={path!r}: holds plain text and conversations; expected one")
        self.tokenizer = tokenizer
        self.rows: list[Sample] = []
        self._blocks = None
        if texts:
            self._blocks = Blocks(joined(tokenizer, texts), max_length, seed)
        for number, messages in enumerate(conversations, start=1):
            token_ids, counted = render(messages, tokenizer, f"{field}={path!r}: row {number}")
            if not any(counted[1:max_length]):
                where = f"{field}={path!r}: conversation {number}"
                raise UserError(f"{where}: no assistant's turn within {max_length} tokens")
            ids = torch.tensor(token_ids[:max_length])
            self.rows.append((ids, torch.tensor(counted[:max_length])))
        self._seed = seed

    def take(self, first: int, count: int) -> Batch:
        """Return the samples numbered first ... first + count - 1, counted over all epochs."""
        if self._blocks is not None:
            return Batch.of(self._blocks.take(first, count))
        return padded([self._row(index) for index in range(first, first + count)])

    def first(self, count: int) -> Batch:
        """Return the first samples of the first epoch, or all of it."""
        available = len(self.rows) if self._blocks is None else self._blocks.per_epoch
        return self.take(0, min(count, available))

    def _row(self, index: int) -> Sample:
        epoch, position = divmod(index, len(self.rows))
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.rows), generator=generator)
        return self.rows[int(order[position])]

    def preview(self) -> str:
        """Show the first sample; what does not count stands in grey brackets."""
        if self._blocks is not None:
            return f"{self.tokenizer.decode(self._blocks.take(0, 1)[0][:64].tolist())} ..."
        shown: list[str] = []
        token_ids, counted = self.rows[0]
        start = 0
        for end in range(1, len(token_ids) + 1):
            if end == len(token_ids) or counted[end] != counted[start]:
                piece = str(self.tokenizer.decode(token_ids[start:end].tolist()))
                shown.append(piece if counted[start] else f"[[{piece}]]")
                start = end
        return "".join(shown)


def padded(rows: Sequence[Sample]) -> Batch:
    """Stack samples of unlike lengths; padding does not count."""
    token_ids, counted = zip(*rows, strict=True)
    return Batch(
        torch.nn.utils.rnn.pad_sequence(list(token_ids), batch_first=True),
        torch.nn.utils.rnn.pad_sequence(list(counted), batch_first=True),
    )


def render(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[list[int], list[bool]]:
    """Render a conversation and mark the assistant's tokens, by where the template puts them.

    The assistant's turn k is what the rendering of the first k + 1 messages adds to that of the
    first k with its invitation to answer; so no template's words need to be known.

    Raises:
        UserError: there is no chat template, it refuses the messages, or it rewrites earlier turns
            when later ones are added, so that boundaries are nowhere.
    """
    if not tokenizer.chat_template:
        raise UserError(f"{where}: the tokenizer has no chat template; expected plain `text`")
    full = _rendered(messages, tokenizer, where, False)
    spans: list[tuple[int, int]] = []
    for turn, message in enumerate(messages):
        if message.role == "assistant":
            asked = _rendered(messages[:turn], tokenizer, where, True)
            answered = _rendered(messages[: turn + 1], tokenizer, where, False)
            if not (answered.startswith(asked) and full.startswith(answered)):
                raise UserError(f"{where}: the chat template rewrites earlier turns")
            spans.append((len(asked), len(answered)))
    encoded = tokenizer(full, add_special_tokens=False, return_offsets_mapping=True)
    counted = [
        any(start <= first < end for start, end in spans) for first, _ in encoded["offset_mapping"]
    ]
    return encoded["input_ids"], counted


def _rendered(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, where: str, invite: bool
) -> str:
    rows = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(
            tokenizer.apply_chat_template(rows, add_generation_prompt=invite, tokenize=False)
        )
    except (TemplateError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{where}: the chat template refuses it ({reason})") from None
