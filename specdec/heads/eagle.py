"""The head of EAGLE and of MTP: one decoder layer that goes on from its own outputs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from specdec.core.errors import require_bool, require_int
from specdec.core.values import Layer
from specdec.heads.base import Embed
from specdec.heads.draft_layer import norm
from specdec.heads.feature_head import FeatureHead
from specdec.heads.feature_layer import FeatureLayer
from specdec.heads.unrolled import UnrolledAttention

ANY_DEPTH = 1 << 20  # it drafts as deep as it is asked to


class EagleHead(FeatureHead):
    """One decoder layer over [embedding; feature], of which an output is the next feature.

    By its options it is the head of EAGLE-1 and EAGLE-3 (Li et al. 2024, 2025), or that of MTP.

    Row t of a text reads the verifier's states at t (`reads`, fused to H numbers) and the token at
    t + 1, sees the rows before it, and speaks about token t + 2 + s at step s = 0. At later steps
    it reads token t + 1 + s, and its own output in place of the feature, as position t + s. Rows of
    true features stand in a cache; the rest is forgotten when a draft is over.

    Args:
        steps: of training, each on the outputs of the one before (training-time test).
        reads: layers of the verifier, ascending: i is the output of decoder layer i, and `final`
            stands behind the last norm. None: that alone.
        fusion: of embedding and feature, see `FeatureLayer`.
        norm_features: whether each layer's states are normalised before they are fused.
        norm_output: whether the next feature is the normalised output, as the vocabulary head's is.
        num_attention_heads: None: of about 64 numbers each.
        num_key_value_heads: None: half as many.
        intermediate_size: of its MLP; None: 8/3 H.

    Raises:
        UserError: an option is out of its range.
    """

    reads_tokens = True

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        steps: int = 4,
        reads: Sequence[Layer] | None = None,
        fusion: str = "concat",
        norm_features: bool = False,
        norm_output: bool = False,
        num_attention_heads: int | None = None,
        num_key_value_heads: int | None = None,
        intermediate_size: int | None = None,
        verifier: dict[str, str] | None = None,
    ):
        super().__init__(hidden_size, vocab_size, steps, reads, verifier)
        require_int("steps", steps, 1)
        require_bool("norm_features", norm_features)
        require_bool("norm_output", norm_output)
        self._feeds_normed = norm_output
        number, size = len(self.reads), hidden_size
        norms = (norm(size) for _ in range(number if norm_features else 0))
        self.norm_features = nn.ModuleList(norms)
        self.fuse = nn.Linear(number * size, size, bias=False) if number > 1 else nn.Identity()
        sizes = (num_attention_heads, num_key_value_heads, intermediate_size)
        self.layer = FeatureLayer(hidden_size, fusion, *sizes)

    @property
    def summary(self) -> str:
        """What it is, for its card."""
        read = ", ".join(map(str, self.reads))
        return (
            f"A layer that goes on from its own outputs, {self.num_heads} of them in training, over"
            f" the layers {read} of one language model at position t and the token at t + 1, as"
            " position t"
        )

    @property
    def max_depth(self) -> int:
        """As deep as anybody asks; deeper than `steps` it is not trained."""
        return ANY_DEPTH

    @property
    def cached_layer(self) -> nn.Module:
        """The layer itself."""
        return self.layer

    def first(self, features: Tensor, embeddings: Tensor) -> Tensor:
        """Return what the layer reads of true features: [.., H of each], [.., H] -> [.., 2 H]."""
        states = features.split(self.hidden_size, dim=-1)
        if self.norm_features:
            states = [norm(state) for norm, state in zip(self.norm_features, states, strict=True)]
        return torch.cat([embeddings, self.fuse(torch.cat(list(states), dim=-1))], dim=-1)

    def next(self, outputs: Tensor, embeddings: Tensor) -> Tensor:
        """Return what the layer reads of its own outputs: [..., H] twice -> [..., 2 H]."""
        fed = self.norm_output(outputs) if self._feeds_normed else outputs
        return torch.cat([embeddings, fed], dim=-1)

    def forced(
        self,
        features: Tensor,
        token_ids: Tensor,
        positions: Tensor,
        following_ids: Tensor,
        embed: Embed,
    ) -> list[Tensor]:
        """Unroll all rows: each step reads the text's tokens, and the outputs of the one before."""
        attention, states = UnrolledAttention(), list[Tensor]()
        output: Tensor | None = None
        for step in range(following_ids.shape[1] - 1):
            behind = pad(token_ids, (0, step + 1))[:, step + 1 :]
            embeddings = embed(behind).to(features.dtype)
            join, read = (self.first, features) if output is None else (self.next, output)
            output = self._unrolled(join(read, embeddings), step, attention)
            states.append(output.flatten(0, 1)[positions])
        return states

    def _unrolled(self, both: Tensor, step: int, attention: UnrolledAttention) -> Tensor:
        read, added_to = self.layer.fused(*both.chunk(2, dim=-1))
        places = torch.arange(step, step + both.shape[1], device=both.device)[None]
        queries, keys, values = self.layer.projected(read, places)
        keys, values = self.layer.repeated(keys), self.layer.repeated(values)
        return self.layer.finished(attention(queries, keys, values), added_to)
