"""Training samples for heads: token ids, and which of them count."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from specdec.core.digest import digest_of
from specdec.core.errors import UserError
from specdec.prompts import Conversation
from specdec.training.data.text import Written, joined, read_documents
from specdec.training.objective import Batch

Sample = tuple[Tensor, Tensor]  # token ids [T] and which of them count [T]


class Samples:
    """Batches of a data file, in an order that a seed fixes.

    Plain text is cut into blocks that count whole. Of a conversation only what the assistant says
    counts; each one is a sample, cut at `max_length` tokens. So is text that the verifier wrote
    (`distill`), of which the prompt does not count; rows whose prompt is longer are left out.
    `vocab_size` is how many tokens its embeddings hold: often more than the tokenizer, and such
    padding may be drawn.

    Raises:
        UserError: the file is no training text, holds several kinds, or has a conversation that
            cannot be rendered or of which nothing counts within `max_length` tokens.
    """

    def __init__(
        self,
        path: str,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        seed: int = 0,
        field: str = "data.path",
        vocab_size: int | None = None,
    ):
        documents = read_documents(path, field)
        if len({type(document) for document in documents}) > 1:
            kinds = "plain text, conversations and written tokens"
            raise UserError(f"{field}={path!r}: holds several of {kinds}; expected one")
        self.tokenizer = tokenizer
        self._vocab_size = vocab_size or len(tokenizer)
        self.num_cut = 0  # samples that were longer
        self._max_length = max_length
        self._seed = seed
        self._epoch, self._order = -1, list[int]()
        self.rows: list[Sample] = []
        texts = [document for document in documents if isinstance(document, str)]
        if texts:
            self.rows = self._blocks(joined(tokenizer, texts), f"{field}={path!r}")
        for number, document in enumerate(documents, start=1):
            where = f"{field}={path!r}: row {number}"
            if isinstance(document, Written):
                if document.num_prompt_tokens < max_length:
                    self.rows.append(self._sample(*self._written(document, where), where))
            elif not isinstance(document, str):
                self.rows.append(self._sample(*render(document, tokenizer, where), where))
        self.num_left_out = 0 if texts else len(documents) - len(self.rows)
        if not self.rows:
            raise UserError(f"{field}={path!r}: no answer begins within {max_length} tokens")

    def _blocks(self, token_ids: Tensor, where: str) -> list[Sample]:
        blocks = [ids for ids in token_ids.split(self._max_length) if len(ids) > 2]
        if not blocks:
            raise UserError(f"{where}: {len(token_ids)} tokens are too few to learn from")
        return [(ids, torch.ones_like(ids, dtype=torch.bool)) for ids in blocks]

    def _written(self, document: Written, where: str) -> tuple[list[int], list[bool]]:
        token_ids, asked = list(document.token_ids), document.num_prompt_tokens
        if not all(0 <= token < self._vocab_size for token in token_ids):
            raise UserError(f"{where}: token ids of another tokenizer")
        return token_ids, [index >= asked for index in range(len(token_ids))]

    def _sample(self, token_ids: list[int], counted: list[bool], where: str) -> Sample:
        length = self._max_length
        self.num_cut += len(token_ids) > length
        if not any(counted[1:length]):
            raise UserError(f"{where}: no assistant's turn within {length} tokens")
        return torch.tensor(token_ids[:length]), torch.tensor(counted[:length])

    @property
    def num_counted(self) -> int:
        """How many tokens of one epoch are read as targets; nothing says the first of a sample."""
        return sum(int(counted[1:].sum()) for _, counted in self.rows)

    def take(self, first: int, count: int) -> Batch:
        """Return the samples numbered first ... first + count - 1, counted over all epochs."""
        return self.batch([self._place(number) for number in range(first, first + count)])

    def batch(self, places: Sequence[int]) -> Batch:
        """Return the samples at some places of the file."""
        return padded([self.rows[place] for place in places], places)

    def first(self, count: int) -> Batch:
        """Return the first samples of the first epoch, or all of it."""
        return self.take(0, min(count, len(self.rows)))

    def _place(self, number: int) -> int:
        epoch, position = divmod(number, len(self.rows))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._order = torch.randperm(len(self.rows), generator=generator).tolist()
            self._epoch = epoch
        return self._order[position]

    def digest(self) -> str:
        """Tell these samples from others by their token ids."""
        lengths = torch.tensor([len(token_ids) for token_ids, _ in self.rows])
        content = torch.cat([lengths, *(token_ids for token_ids, _ in self.rows)])
        return digest_of(content.numpy().tobytes())

    def preview(self) -> str:
        """Show the first sample; what does not count stands in [[brackets]]."""
        shown: list[str] = []
        token_ids, counted = self.rows[0]
        start = 0
        for end in range(1, len(token_ids) + 1):
            if end == len(token_ids) or counted[end] != counted[start]:
                piece = str(self.tokenizer.decode(token_ids[start:end].tolist()))
                shown.append(piece if counted[start] else f"[[{piece}]]")
                start = end
        length = self._max_length
        if self.num_cut:
            shown.append(
                f"\n({self.num_cut} of {len(self.rows)} samples are cut at {length} tokens)"
            )
        if self.num_left_out:
            shown.append(f"\n({self.num_left_out} answers begin behind {length} tokens: left out)")
        return "".join(shown)


def padded(rows: Sequence[Sample], places: Sequence[int] = ()) -> Batch:
    """Stack samples of unlike lengths; padding does not count."""
    token_ids, counted = zip(*rows, strict=True)
    return Batch(
        torch.nn.utils.rnn.pad_sequence(list(token_ids), batch_first=True),
        torch.nn.utils.rnn.pad_sequence(list(counted), batch_first=True),
        tuple(places),
    )


def render(
    talk: Conversation, tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[list[int], list[bool]]:
    """Render a conversation and mark the assistant's tokens, by where the template puts them.

    The assistant's turn k is what the rendering of the first k + 1 messages adds to that of the
    first k with its invitation to answer; so no template's words need to be known.

    Raises:
        UserError: there is no chat template, it refuses the messages, or it rewrites earlier turns
            when later ones are added, so that boundaries are nowhere.
    """
    full = rendered(talk, tokenizer, where, False)
    spans: list[tuple[int, int]] = []
    for turn, message in enumerate(talk.messages):
        if message.role == "assistant":
            asked = rendered(first(talk, turn), tokenizer, where, True)
            answered = rendered(first(talk, turn + 1), tokenizer, where, False)
            if not (answered.startswith(asked) and full.startswith(answered)):
                raise UserError(f"{where}: the chat template rewrites earlier turns")
            spans.append((len(asked), len(answered)))
    encoded = tokenizer(full, add_special_tokens=False, return_offsets_mapping=True)
    counted = [
        any(start <= first < end for start, end in spans) for first, _ in encoded["offset_mapping"]
    ]
    return encoded["input_ids"], counted


def first(talk: Conversation, number: int) -> Conversation:
    """Return a conversation as it was after so many messages."""
    return replace(talk, messages=talk.messages[:number])


def rendered(
    talk: Conversation, tokenizer: PreTrainedTokenizerBase, where: str, invite: bool
) -> str:
    """Put a conversation through the chat template, with its invitation to answer if `invite`.

    Raises:
        UserError: there is no chat template, or it refuses the messages.
    """
    if not tokenizer.chat_template:
        raise UserError(f"{where}: the tokenizer has no chat template; expected plain `text`")
    rows = [dict(message.row) for message in talk.messages]
    try:
        return str(
            tokenizer.apply_chat_template(
                rows, **talk.given, add_generation_prompt=invite, tokenize=False
            )
        )
    except Exception as error:  # a template is a program, and may fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{where}: the chat template refuses it ({reason})") from None
