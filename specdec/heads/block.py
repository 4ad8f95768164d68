"""The block head: all depths in one pass over masks, behind the verifier's features."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from specdec.core.errors import require, require_int
from specdec.core.values import Layer
from specdec.heads.base import Embed
from specdec.heads.block_layer import BlockLayer
from specdec.heads.correction import correction_of
from specdec.heads.draft_layer import linear, norm
from specdec.heads.feature_head import FeatureHead

CAUSAL, BIDIRECTIONAL = "causal", "bidirectional"
MASKS = (CAUSAL, BIDIRECTIONAL)
SHIFTED, IN_PLACE = "shifted", "in_place"
LABELS = (SHIFTED, IN_PLACE)
SPREAD = 0.02  # of a fresh mask vector
SCORES_AT_ONCE = 1 << 25  # of attention: 128 MiB in fp32


class BlockHead(FeatureHead):
    """A block of slots behind a text: the last token's embedding, then masks, in one pass.

    The backbone is that of DFlash (Chen et al. 2026, arXiv 2602.06036); by its options it is the
    head of JetSpec (arXiv 2606.18394) or of DSpark (arXiv 2607.05147).

    A block whose token stands at t + 1 sees the verifier's states up to t (`reads`, fused to H
    numbers) in every layer, and its own slots; slot j stands at position t + 1 + j. Only keys and
    values of the text are kept; of a block nothing is.

    The vector of a mask is the head's own.

    Args:
        num_heads: tokens that are predicted, each a row of the block.
        num_layers: of the block.
        reads: layers of the verifier, ascending: i is the output of decoder layer i, and `final`
            stands behind the last norm. None: that alone.
        mask: whether a slot sees the slots before it alone (`causal`), so that a row is the same
            however many follow, or the whole block (`bidirectional`), which is always as long as
            it was in training.
        labels: `shifted`: slot j speaks of the token at t + 2 + j; `in_place`: of that at its own
            position, and slot 0 says nothing.
        correction: of a row's logits by the token before it: none or markov.
        rank: of that correction.
        num_attention_heads: None: of about 64 numbers each.
        num_key_value_heads: None: half as many.
        intermediate_size: of the MLPs; None: 8/3 H.

    Raises:
        UserError: an option is out of its range.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        num_heads: int = 7,
        num_layers: int = 1,
        reads: Sequence[Layer] | None = None,
        mask: str = CAUSAL,
        labels: str = SHIFTED,
        correction: str = "markov",
        rank: int = 32,
        num_attention_heads: int | None = None,
        num_key_value_heads: int | None = None,
        intermediate_size: int | None = None,
        verifier: dict[str, str] | None = None,
    ):
        super().__init__(hidden_size, vocab_size, num_heads, reads, verifier)
        require_int("num_heads", num_heads, 1)
        require_int("num_layers", num_layers, 1)
        require(mask in MASKS, "mask", mask, "one of " + ", ".join(MASKS))
        require(labels in LABELS, "labels", labels, "one of " + ", ".join(LABELS))
        self.is_causal = mask == CAUSAL
        self._num_silent = 1 if labels == IN_PLACE else 0  # slots at the front that say nothing
        self.fuse = linear(self.feature_size, hidden_size)
        self.norm_context = norm(hidden_size)
        self.mask_vector = nn.Parameter(torch.empty(hidden_size))
        nn.init.normal_(self.mask_vector, std=SPREAD)
        sizes = (num_attention_heads, num_key_value_heads, intermediate_size)
        self.blocks = nn.ModuleList(BlockLayer(hidden_size, *sizes) for _ in range(num_layers))
        self.correction = correction_of(correction, vocab_size, rank)

    @property
    def summary(self) -> str:
        """What it is, for its card."""
        read = ", ".join(map(str, self.reads))
        return (
            f"A block of {self.num_heads} tokens ahead, in one pass behind the layers {read} of one"
            " language model"
        )

    @property
    def _layers(self) -> list[BlockLayer]:
        return [each for each in self.blocks if isinstance(each, BlockLayer)]

    def context(self, features: Tensor) -> Tensor:  # [..., H of each layer] -> [..., H]
        """Fuse the verifier's states of each place."""
        return self.norm_context(self.fuse(features))

    def slots(self, roots: Tensor, depth: int) -> Tensor:  # [..., H] -> [..., S, H]
        """Put masks behind the embeddings of last tokens, for `depth` rows at least.

        Where a slot sees the whole block, that is as long as in training: rows depend on it.
        """
        count = (depth if self.is_causal else self.num_heads) - 1 + self._num_silent
        masks = self.mask_vector.to(roots.dtype).expand(*roots.shape[:-1], count, -1)
        return torch.cat([roots[..., None, :], masks], dim=-2)

    def rows(self, hidden: Tensor, depth: int) -> Tensor:  # [..., S, H] -> [..., depth, H]
        """Return the first `depth` of the slots that speak."""
        return hidden[..., self._num_silent : self._num_silent + depth, :]

    def forced(
        self,
        features: Tensor,
        token_ids: Tensor,
        positions: Tensor,
        following_ids: Tensor,
        embed: Embed,
    ) -> list[Tensor]:
        """Go through a block behind each position; the text's tokens ahead are not read."""
        depth, context = following_ids.shape[1] - 1, self.context(features)
        roots = embed(following_ids[:, 0]).to(features.dtype)
        num_heads = self._layers[0].num_heads
        num_scores = len(positions) * self.num_heads * token_ids.shape[1] * num_heads
        # Gradients want the scores of all; without them a part at a time will do.
        num_parts = 1 if torch.is_grad_enabled() else 1 + num_scores // SCORES_AT_ONCE
        if num_parts == 1:
            return list(self._packed(context, positions, roots, depth).unbind(dim=1))
        rows = roots.new_empty(len(positions), depth, self.hidden_size)
        for first in range(num_parts):  # each with some of every text
            part = slice(first, None, num_parts)
            rows[part] = self._packed(context, positions[part], roots[part], depth)
        return list(rows.unbind(dim=1))

    def _packed(
        self, context: Tensor, positions: Tensor, roots: Tensor, depth: int
    ) -> Tensor:  # [B, T, H], [n], [n, H] -> [n, depth, H]
        hidden = self.slots(roots, depth)
        num_texts, length = context.shape[:2]
        texts = _Texts.of(positions, num_texts, length)
        places = torch.arange(length, device=positions.device)[None]
        behind = torch.arange(1, hidden.shape[1] + 1, device=positions.device)
        slots, found = texts.last[..., None] + behind, texts.gathered(hidden)
        for layer in self._layers:
            found = layer.packed(found, slots, context, places, texts.last, self.is_causal)
        return self.rows(found[texts.text, texts.number], depth)

    def drafted(
        self, hidden: Tensor, positions: Tensor, attention_mask: Tensor, cache: Cache
    ) -> Tensor:  # [B, S, H]
        """Go through one block behind each of B cached texts; its cells are the cache's last."""
        for number, layer in enumerate(self._layers):
            hidden = layer.cached(hidden, positions, attention_mask, cache, number)
        return hidden

    def remembered(
        self, features: Tensor, positions: Tensor, attention_mask: Tensor, cache: Cache
    ) -> Tensor:  # [B, M, H]
        """Put keys and values of M places of B texts into the cache; return them fused."""
        context = self.context(features)
        for number, layer in enumerate(self._layers):
            cache.update(*layer.keyed(context, positions), number)
        return context


class _Texts(NamedTuple):
    """The places of n blocks by text: each is block `number` of a text; A is the most of one."""

    text: Tensor  # [n]
    number: Tensor  # [n]
    last: Tensor  # [B, A]: the place behind which each block begins; 0 where there is none

    @classmethod
    def of(cls, positions: Tensor, num_texts: int, length: int) -> "_Texts":
        """Sort n positions of B flattened texts of a length, which may repeat."""
        text, place = positions // length, positions % length
        order = text.argsort(stable=True)
        counts = text.bincount(minlength=num_texts)
        first = counts.cumsum(0) - counts
        number = torch.empty_like(positions)
        number[order] = torch.arange(len(positions), device=positions.device) - first[text[order]]
        last = positions.new_zeros(num_texts, int(counts.max()))
        last[text, number] = place
        return cls(text, number, last)

    def gathered(self, hidden: Tensor) -> Tensor:  # [n, S, H] -> [B, A, S, H]
        """Give each block its place beside those of its text."""
        found = hidden.new_zeros(*self.last.shape, *hidden.shape[1:])
        return found.index_put((self.text, self.number), hidden)
