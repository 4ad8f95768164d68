"""What heads and drafts are trained for, in closed form: block efficiency along held-out texts.

Decoding a few prompts is noisy; held-out texts have thousands of tokens, and what would be accepted
before each of them follows from p and q there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from specdec.core.closed_form import TextNodes
from specdec.core.protocols import Proposer
from specdec.core.sampling import Sampling, draw
from specdec.core.values import FINAL, Draw, Layer
from specdec.heads.base import DraftHeads
from specdec.lm.generation import end_ids_of, heeded
from specdec.lm.hf import HFCausalLM
from specdec.metrics import Tally
from specdec.metrics.estimate import FloatArray
from specdec.recording.hidden_states import States
from specdec.recording.texts import Text, batches, processed
from specdec.replaying.closed_form import CELLS_AT_ONCE, from_first
from specdec.replaying.draft_distributions import (
    DraftDistributions,
    HeadDistributions,
    ModelDistributions,
)
from specdec.replaying.expected_steps import Replayed
from specdec.replaying.survival import ahead, of_tree
from specdec.training.acceptance import Acceptance, by_category, layers_of
from specdec.training.held_texts import HeldTexts, named
from specdec.training.objective import Batch
from specdec.tree.filtered import Filtered
from specdec.tree.fixed import FixedTree
from specdec.verification.rejection_form import covered_iid, without_replacement


class HeldOut(Acceptance):
    """Block efficiency along all held-out tokens; trees that grow with what is drafted are decoded.

    At each place the probability that a child is accepted is taken over the verifier's distribution
    p there, not of the text's own token: sum_v min(p, q) of a single draw, p(candidate) of
    candidates that are not drawn, at temperature 0 whether the argmax is among them. Steps go down
    the tree and on to where the next one begins with these probabilities (see `Replayed`).

    That is block efficiency to an approximation: what lies below a child is looked at after the
    text's tokens (teacher forcing), which the verifier need not have written, and each depth's
    average stands for its outcomes. It ranks checkpoints; decoding measures them. The answers to
    `prompts` of one's own are written by the verifier itself.

    Args:
        tree: that is grown along the texts.
        sampling: the distribution that tokens are drawn from.
        num_prompts: held-out samples that are decoded, where the tree has no fixed shape.
        prompt_tokens: of a plain text; a conversation's prompt ends where an answer begins.
        max_new_tokens: of each text that is decoded or answered.
        seed: of all that is drawn.
        prompts: a file or a data set of your own; None: the held-out samples.
        prompts_limit: the first so many of those; None: all.

    Raises:
        UserError: a number is out of its range, or the tree needs another rule than rejection.
    """

    def measure(
        self,
        verifier: HFCausalLM,
        proposer: Proposer,
        draft: DraftHeads | HFCausalLM,
        held_out: Batch,
    ) -> dict[str, float]:
        """Return `eval_block_efficiency`, and the ends of its interval by whole prompts."""
        tree = self.tree
        if not isinstance(tree, FixedTree):
            return super().measure(verifier, proposer, draft, held_out)
        of_heads = isinstance(draft, DraftHeads)
        longest = verifier.max_length if of_heads else min(draft.max_length, verifier.max_length)
        held = self.texts(verifier, held_out, layers_of(draft))
        texts = list(_texts(held.batch, longest))
        states = _states(verifier, held.batch, texts, layers_of(draft))
        distributions: DraftDistributions = (
            HeadDistributions(draft, verifier, states, tree.max_depth)
            if of_heads
            else ModelDistributions(draft)
        )
        sampling = heeded(self.sampling, verifier, end_ids_of(verifier))
        emitted, calls = np.zeros((2, len(held.prompt_ids)))
        # As decoding runs them: in the models' own types.
        with torch.no_grad(), torch.autocast(verifier.device.type, enabled=False):
            for batch in batches(texts, max(1, CELLS_AT_ONCE // verifier.vocab_size)):
                read = _logits(verifier, states, batch)
                steps = _replayed(batch, distributions, tree, sampling, read).calls.tolist()
                for text, num in zip(batch, steps, strict=True):
                    emitted[int(text.prompt_id)] += len(text.output_ids)
                    calls[int(text.prompt_id)] += num
        return named(by_category(_tally(held, emitted, calls)))


def _texts(held_out: Batch, longest: int) -> Iterator[Text]:
    """Yield each run of counted tokens, as continuation of all that stands before it."""
    for row, (token_ids, counted) in enumerate(
        zip(held_out.token_ids[:, :longest], held_out.counted[:, :longest], strict=True)
    ):
        ids, flags = tuple(token_ids.tolist()), [False, *counted.tolist()[1:], False]
        edges = [place for place in range(1, len(flags)) if flags[place] != flags[place - 1]]
        for turn, (start, end) in enumerate(zip(edges[::2], edges[1::2], strict=True)):
            budget = end - start
            yield Text(f"{row}", "", turn, ids[:start], ids[start:end], (), "length", budget)


def _tally(held: HeldTexts, emitted: FloatArray, calls: FloatArray) -> Tally:  # [N], [N]
    """Add up the texts of each prompt."""
    rows: dict[str, dict[str, Any]] = {}
    for place, (name, category) in enumerate(zip(held.prompt_ids, held.categories, strict=True)):
        row = rows.setdefault(name, {"prompt_id": name, "category": category})
        row["num_emitted"] = row.get("num_emitted", 0.0) + emitted[place]
        row["num_steps"] = row.get("num_steps", 0.0) + calls[place]
    return Tally.from_rows([*rows.values()])


def _states(
    verifier: HFCausalLM, held_out: Batch, texts: Sequence[Text], layers: Sequence[Layer]
) -> States:
    """Take up what the verifier has read by now, or let it read."""
    states = States(verifier)
    if held_out.hidden is not None:
        for text in texts:
            length = len(text.prompt_ids) + len(text.output_ids) - 1
            read = held_out.hidden[int(text.prompt_id), :length]
            states.know(text, dict(zip(layers, read.chunk(len(layers), dim=-1), strict=True)))
    return states


def _logits(verifier: HFCausalLM, states: States, texts: Sequence[Text]) -> Tensor:  # [B, T, V]
    """Return what the verifier says about each token of the texts before it."""
    found: list[Tensor] = []
    for row, text in enumerate(texts):
        state = states.of(text, (FINAL,), texts[row:])[FINAL]
        found.append(state[len(text.prompt_ids) - 1 :])
    return verifier.unembed(pad_sequence(found, batch_first=True))


def _replayed(
    texts: Sequence[Text],
    distributions: DraftDistributions,
    tree: FixedTree,
    sampling: Sampling,
    read: Tensor,
) -> Replayed:
    """Replay texts with the verifier's logits `read` [B, T, V], in place of their tokens."""
    size = read.shape[-1]
    p = sampling.warp(processed(texts, sampling, read))
    found: list[Tensor] = []
    for depth, said in enumerate(distributions.along(texts, size), start=1):
        behind = min(depth - 1, p.shape[1])  # places at the end, before which no candidate stands
        logits = processed(texts, sampling, said, depth)
        nodes = _Nodes(p[:, behind:], logits[:, : p.shape[1] - behind])
        found.append(pad(nodes.shares(tree, sampling), (0, 0, 0, behind)))
        if depth == tree.max_depth:
            break
    if distributions.num_depths is None:  # the same at whatever depth
        found = [ahead(found[0], depth) for depth in range(1, tree.max_depth + 1)]
    survival = of_tree(tree.nodes, found)
    return Replayed.of(texts, survival, from_first(texts, distributions, survival))


@dataclass(frozen=True)
class _Nodes:
    """The distributions at one depth of a step at each of B x T places."""

    p: Tensor  # [B, T, V]
    logits: Tensor  # [B, T, V]: the draft's

    def shares(self, tree: FixedTree, sampling: Sampling) -> Tensor:  # [B, T, K] float64
        """Return P(the k-th child is the accepted one), 0 where drafting has stopped."""
        num = 1 + max(path[-1] for path in tree.nodes)
        p, logits = self.p.flatten(0, 1), self.logits.to(self.p.device).flatten(0, 1)
        found = _accepted(p, logits, tree, sampling, num).double()
        if tree.min_confidence > 0:
            sure = logits.float().softmax(dim=-1).amax(dim=-1)
            found = found * (sure >= tree.min_confidence)[:, None]
        return found.view(*self.p.shape[:2], num)


def _accepted(
    p: Tensor, logits: Tensor, tree: FixedTree, sampling: Sampling, num: int
) -> Tensor:  # [n, V], [n, V] -> [n, K]
    """Return P(the k-th of `num` children is the accepted one), under rejection."""
    if tree.draw is Draw.DETERMINISTIC:
        mass = p.gather(1, logits.topk(min(num, logits.shape[1]), dim=1).indices)
        return pad(mass, (0, num - mass.shape[1]))
    q = sampling.warp(logits).to(p.dtype)
    if isinstance(tree, Filtered):
        q = Filtered.passed(q, *tree.passing)
    # Which tokens were rejected decides what the next is drawn from: a token of p stands for all.
    noise = torch.Generator().manual_seed(0)  # the same at every evaluation
    uniforms = torch.rand(len(p), 1, generator=noise, dtype=torch.float64)
    token_ids = draw(p, uniforms.to(p.device))[:, 0].clamp(max=p.shape[1] - 1)
    log_p = p.gather(1, token_ids[:, None]).squeeze(1).double().log()
    nodes = TextNodes(q, token_ids, log_p, num, probs=p, generator=noise)
    if tree.draw is not Draw.WITHOUT_REPLACEMENT:
        live, found = p.new_ones(len(p)), list[Tensor]()
        for covered in covered_iid(nodes):
            accepted = covered.sum(dim=1)
            found.append(live * accepted)
            live = live * (1 - accepted).clamp(min=0)
        return torch.stack(found, dim=1)
    return without_replacement(nodes)
