"""Train Medusa heads on a frozen verifier (Medusa-1, Cai et al. 2024, section 2.2)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from specdec.core.errors import require_int, require_number
from specdec.heads.medusa import MedusaHeads
from specdec.lm.fingerprint import fingerprint
from specdec.lm.hf import HFCausalLM
from specdec.training.objective import Batch
from specdec.training.samples import Samples

LOGITS_AT_ONCE = 1 << 23  # of a vocabulary projection: 32 MiB in fp32, whatever K x T x V


class Loss(Protocol):
    """A loss of one token's distribution."""

    @property
    def uses_verifier(self) -> bool:
        """Whether it wants the verifier's logits."""
        ...

    def __call__(
        self, logits: Tensor, target_ids: Tensor, verifier_logits: Tensor | None
    ) -> Tensor:
        """Score n tokens: logits [n, V] against target ids [n] or the verifier's logits [n, V]."""
        ...


class Medusa:
    """K heads on the verifier's last hidden states; only the heads are trained and saved.

    The loss of head i (from 0) weighs `decay^i`.
    """

    def __init__(
        self,
        verifier: HFCausalLM,
        loss: Loss,
        data_path: str,
        held_out_path: str,
        num_heads: int = 4,
        num_layers: int = 1,
        own_vocabulary_head: bool = True,
        decay: float = 0.8,
        max_length: int = 512,
        eval_samples: int = 32,
        seed: int = 0,
    ):
        require_int("max_length", max_length, 2)
        require_int("eval_samples", eval_samples, 1)
        require_int("seed", seed, 0)
        require_number("decay", decay, 0.0, 1.0)
        config = verifier.model.config.get_text_config()
        heads = MedusaHeads(
            config.hidden_size,
            verifier.vocab_size,
            num_heads,
            num_layers,
            own_vocabulary_head,
            fingerprint(verifier),
        )
        unembedding = verifier.model.get_output_embeddings()
        assert isinstance(unembedding, nn.Linear)
        heads.start_from(unembedding.weight.detach())
        verifier.model.requires_grad_(False)
        assert verifier.tokenizer is not None
        length = min(max_length, verifier.max_length)
        self._samples = Samples(data_path, verifier.tokenizer, length, seed)
        held_out = Samples(held_out_path, verifier.tokenizer, length, seed, "data.held_out_path")
        self._held_out = held_out.first(eval_samples)
        self._verifier = verifier
        self.module: nn.Module = HeadLosses(heads, verifier.unembed, loss, decay)

    def preview(self) -> str:
        """Show the first sample."""
        return self._samples.preview()

    def batch(self, first: int, count: int) -> Batch:
        """Return the samples numbered first ... first + count - 1."""
        return self._samples.take(first, count)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Sum of all heads' losses over the counted tokens."""
        return module(self._hidden(batch), batch.token_ids, batch.counted)

    @torch.no_grad()
    def _hidden(self, batch: Batch) -> Tensor:  # [B, T, H]
        """Run the verifier below its vocabulary head; padding stands behind, where none look."""
        model = self._verifier.model
        if model.device != batch.token_ids.device:  # the trainer decides where it trains
            nn.Module.to(model, batch.token_ids.device)
        output = model.base_model(input_ids=batch.token_ids, use_cache=False)
        return output.last_hidden_state.float()

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Measure each head's top-1 and top-5 accuracy on held-out samples."""
        assert isinstance(module, HeadLosses)
        device = next(module.parameters()).device
        hits = torch.zeros(module.heads.num_heads, 3)
        for row in range(len(self._held_out.token_ids)):
            batch = Batch(
                self._held_out.token_ids[row : row + 1], self._held_out.counted[row : row + 1]
            ).to(device)
            hits += module.hits(self._hidden(batch), batch.token_ids, batch.counted).cpu()
        rates = hits[:, :2] / hits[:, 2:].clamp(min=1)
        return {
            f"eval_head{head}_top{k}": float(rates[head, column])
            for head in range(len(hits))
            for column, k in enumerate((1, 5))
        }

    def save(self, module: nn.Module, folder: Path) -> None:
        """Write a folder that `proposer=medusa proposer.path=FOLDER` decodes with."""
        assert isinstance(module, HeadLosses)
        module.heads.save_pretrained(folder)


class HeadLosses(nn.Module):
    """The heads and their losses in one forward, as wrappers for several processes want it."""

    def __init__(
        self, heads: MedusaHeads, unembed: Callable[[Tensor], Tensor], loss: Loss, decay: float
    ):
        super().__init__()
        self.heads = heads
        self._unembed = unembed
        self._loss = loss
        self._decay = decay

    def forward(self, hidden: Tensor, token_ids: Tensor, counted: Tensor) -> Tensor:
        """Sum the losses: hidden [B, T, H], token ids and counted [B, T] -> scalar."""
        total = hidden.new_zeros((), dtype=torch.float32)
        for head, state, targets, verifier_state in self._pairs(hidden, token_ids, counted):
            total = total + self._decay**head * self._sum(head, state, targets, verifier_state)
        return total

    def _pairs(
        self, hidden: Tensor, token_ids: Tensor, counted: Tensor
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """For each head: its states [n, H], the tokens they should say [n], and the verifier's
        states [n, H] that its own head predicts the same tokens from.
        """
        for head, states in enumerate(self.heads.states(hidden)):
            ahead = head + 2
            if token_ids.shape[1] <= ahead:
                return
            chosen = counted[:, ahead:]
            yield (
                head,
                states[:, :-ahead][chosen],
                token_ids[:, ahead:][chosen],
                hidden[:, ahead - 1 : -1][chosen],
            )

    def _sum(self, head: int, state: Tensor, targets: Tensor, verifier_state: Tensor) -> Tensor:
        """Sum one head's loss in chunks whose logits are not kept, but computed again."""
        total = state.new_zeros((), dtype=torch.float32)
        size = max(1, LOGITS_AT_ONCE // self.heads.vocab_size)
        for start in range(0, len(state), size):
            piece = slice(start, start + size)
            total = total + checkpoint(
                self._chunk,
                head,
                state[piece],
                targets[piece],
                verifier_state[piece],
                use_reentrant=False,
            )
        return total

    def _chunk(self, head: int, state: Tensor, targets: Tensor, verifier_state: Tensor) -> Tensor:
        logits = self.heads.logits(head, state, self._unembed).float()
        verifier_logits = None
        if self._loss.uses_verifier:
            with torch.no_grad():
                verifier_logits = self._unembed(verifier_state).float()
        return self._loss(logits, targets, verifier_logits).sum()

    def hits(self, hidden: Tensor, token_ids: Tensor, counted: Tensor) -> Tensor:  # [K, 3]
        """Count per head: right at rank 1, right within rank 5, asked."""
        counts = torch.zeros(self.heads.num_heads, 3, device=hidden.device)
        for head, state, targets, _ in self._pairs(hidden, token_ids, counted):
            best = self.heads.logits(head, state, self._unembed).topk(5, dim=-1).indices
            right = best == targets[:, None]
            counts[head] = torch.stack(
                [right[:, 0].sum(), right.sum(), torch.tensor(len(targets), device=hidden.device)]
            )
        return counts
