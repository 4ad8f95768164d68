"""A draft's distributions along a text, each after the true tokens before it (teacher forcing)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.protocols import CausalLM, SourceReader
from specdec.core.unlike_vocabularies import fitted
from specdec.heads.base import DraftHeads
from specdec.heads.forcing import HeadTargets, forced_states
from specdec.lm.batch import pad
from specdec.lm.hf import HFCausalLM
from specdec.recording.hidden_states import States
from specdec.recording.texts import Text, logits_along


class DraftDistributions(Protocol):
    """Where candidates are drawn from."""

    @property
    def num_depths(self) -> int | None:
        """How many depths have distributions of their own; None: they depend on the text alone."""
        ...

    @property
    def reads_path(self) -> bool:
        """Whether it depends on which candidates came before, and not on their number alone."""
        ...

    def along(self, texts: Sequence[Text], vocab_size: int) -> Iterator[Tensor]:  # of [B, T, V]
        """Yield the logits at depth 1, 2, ... of a step that begins at each place of each text.

        One tensor for all depths, of the token at each place, where `num_depths` is None.
        """
        ...

    def first_start(self, text: Text) -> int:
        """Return where the first step begins that has candidates."""
        ...


@dataclass(frozen=True)
class ModelDistributions:
    """A small language model: one forward serves every depth, temperature and length of draft."""

    model: CausalLM
    num_depths: int | None = None
    reads_path: bool = True

    def along(self, texts: Sequence[Text], vocab_size: int) -> Iterator[Tensor]:
        """Read the texts once.

        Raises:
            UserError: a text does not fit the model's context; decoding stops drafting there.
        """
        longest = max(len(text.prompt_ids) + len(text.output_ids) for text in texts)
        if longest > self.model.max_length:
            raise UserError(
                f"draft.path: texts of {longest} tokens, of which the draft model reads"
                f" {self.model.max_length}; such texts cannot be replayed"
            )
        yield logits_along(self.model, texts, vocab_size)

    def first_start(self, text: Text) -> int:
        """All steps have candidates."""
        return 0


@dataclass(frozen=True)
class HeadDistributions:
    """Heads, asked from every place of a text at once."""

    heads: DraftHeads
    verifier: HFCausalLM
    states: States | None = None  # that others have read, too
    depth: int | None = None  # how far ahead they are asked; None: as far as they were trained

    @property
    def num_depths(self) -> int:
        """One for each head."""
        return self.depth or self.heads.num_heads

    @property
    def reads_path(self) -> bool:
        """Some heads know nothing of each other's tokens."""
        return self.heads.reads_path

    def along(self, texts: Sequence[Text], vocab_size: int) -> Iterator[Tensor]:
        """Let the verifier read the texts, unless it has, and each head its states."""
        width = max(map(_length, texts)) + self.num_depths
        tokens = pad([[*text.prompt_ids, *text.output_ids] for text in texts], self.verifier.device)
        token_ids = torch.nn.functional.pad(tokens, (0, width + self.num_depths + 1))
        targets, (num_rows, length) = self._head_targets(texts, token_ids, width), _shape(texts)
        hidden = self._hidden(texts, width)
        read = token_ids[:, :width]
        states = forced_states(self.heads, self.verifier, hidden, read, targets)
        for head, state in enumerate(states):
            before = targets.following_ids[:, head]
            logits = self.heads.logits(head, state, before, self.verifier.unembed)
            yield fitted(logits, vocab_size).view(num_rows, length, -1)

    def _hidden(self, texts: Sequence[Text], length: int) -> Tensor:  # [B, length, W]
        known = self.states or States(self.verifier, len(texts))
        found: list[Tensor] = []
        for row, text in enumerate(texts):
            states = known.of(text, self.heads.reads, texts[row:])
            found.append(torch.cat([states[layer] for layer in self.heads.reads], dim=-1))
        states = found[0].new_zeros(len(texts), length, found[0].shape[-1])
        for row, (text, state) in enumerate(zip(texts, found, strict=True)):
            begins = self._num_unread(text)
            states[row, : len(state) - begins] = state[begins:]
        return states.to(next(self.heads.parameters()).dtype)

    def _head_targets(self, texts: Sequence[Text], token_ids: Tensor, width: int) -> HeadTargets:
        """Ask at every place, also behind the end of short texts: what comes of that is not used.

        The root of a step that begins at s is the token before it, and the heads read the state
        below that root.
        """
        num_heads, (_, length) = self.num_depths, _shape(texts)
        device = self.verifier.device
        below_roots = [
            [max(0, len(text.prompt_ids) + start - 2) for start in range(length)] for text in texts
        ]
        places = torch.tensor(below_roots, device=device)
        ahead = places[..., None] + torch.arange(1, num_heads + 2, device=device)
        following = token_ids.gather(1, ahead.clamp(max=token_ids.shape[1] - 1).flatten(1))
        unread = torch.tensor([self._num_unread(text) for text in texts], device=device)
        positions = (places - unread[:, None]).clamp(0, width - 1)
        positions = positions + width * torch.arange(len(texts), device=device)[:, None]
        following = following.view(-1, num_heads + 1)
        wanted = torch.ones(len(following), num_heads, dtype=torch.bool, device=device)
        return HeadTargets(positions.flatten(), following, wanted)

    def first_start(self, text: Text) -> int:
        """A prompt of one token has no hidden state below it, and a source has none at all."""
        return 0 if len(text.prompt_ids) - self._num_unread(text) > 1 else 1

    def _num_unread(self, text: Text) -> int:
        """Return how many tokens have no states: a source's, which stands before the last one."""
        return len(text.prompt_ids) - 1 if isinstance(self.verifier, SourceReader) else 0


def _length(text: Text) -> int:
    return len(text.prompt_ids) + len(text.output_ids)


def _shape(texts: Sequence[Text]) -> tuple[int, int]:  # B, T
    return len(texts), max(len(text.output_ids) for text in texts)
