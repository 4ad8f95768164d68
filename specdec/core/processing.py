"""Logits processors: what the tokens before a token do to its logits.

A processor has the signature of transformers' own: `input_ids` [n, L] int64, all tokens before, the
prompt included, and `scores` [n, V]; it returns the scores that count. It must be a function of
these two, row by row. Then the distribution p after a context depends on that context alone,
whichever way a tree came by it, and every rule that is lossless for p stays so.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from specdec.core.on_device import on_device
from specdec.core.tree import CandidateTree


class Processor(Protocol):
    """A function of the tokens before, e.g. any stateless processor of transformers."""

    def __call__(self, input_ids: Tensor, scores: Tensor, /) -> Tensor:
        """Return the scores [n, V] that count after the texts `input_ids` [n, L]."""
        ...


@runtime_checkable
class OfPrompt(Protocol):
    """What makes the processors of one prompt: some need to know where the answer begins."""

    def for_prompt(self, prompt_ids: Sequence[int], budget: int) -> Sequence[Processor]:
        """Return the processors of a text that may get `budget` tokens behind its prompt."""
        ...


def bound(
    processors: Sequence[Processor | OfPrompt], prompt_ids: Sequence[int], budget: int
) -> tuple[Processor, ...]:
    """Return the processors of one prompt, in their order."""
    found: list[Processor] = []
    for each in processors:
        found += each.for_prompt(prompt_ids, budget) if isinstance(each, OfPrompt) else [each]
    return tuple(found)


def processed(
    processors: Sequence[Processor], input_ids: Tensor, logits: Tensor
) -> Tensor:  # [n, L], [n, V] -> [n, V]
    """Apply processors one after another, in fp32 as transformers does (float64 stays)."""
    # A copy, since some processors write into what they are given.
    scores = _copied(logits)
    for each in processors:
        scores = each(input_ids, scores)
    return scores


def over_tree(
    processors: Sequence[Processor], token_ids: Sequence[int], tree: CandidateTree, logits: Tensor
) -> Tensor:  # [M, V] -> [M, V]
    """Process the logits after each node of a tree, each on its own path from the root.

    `token_ids` are the committed tokens, the root last; rows of padding behind the tree stay.
    """
    if not processors:
        return logits
    found = _copied(logits)
    before = on_device(list(token_ids[:-1]), logits.device, torch.int64)
    paths: list[list[int]] = []
    for node, parent in enumerate(tree.parents):
        paths.append([*(paths[parent] if node else ()), tree.token_ids[node]])
    for depth in sorted(set(tree.depths)):  # texts of one length at a time
        nodes = [node for node, each in enumerate(tree.depths) if each == depth]
        below = on_device([paths[node] for node in nodes], logits.device)
        input_ids = torch.cat([before.expand(len(nodes), -1), below], dim=1)
        found[nodes] = processed(processors, input_ids, logits[nodes])
    return found


def along(
    processors: Sequence[Processor],
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    logits: Tensor,
    first: int = 0,
) -> Tensor:  # [n, V] -> [n, V]
    """Process the logits along a text: row i stands after the first `first + i` outputs.

    Rows behind the end of the text stay as they are.
    """
    if not processors:
        return logits
    found = _copied(logits)
    text = on_device([[*prompt_ids, *output_ids]], logits.device, torch.int64)
    for row in range(min(len(logits), len(output_ids) + 1 - first)):
        before = text[:, : len(prompt_ids) + first + row]
        found[row] = processed(processors, before, logits[row : row + 1])[0]
    return found


def _copied(logits: Tensor) -> Tensor:
    """Return the logits as fp32, or float64, in memory of their own."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.to(dtype, copy=True)
