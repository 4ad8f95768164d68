"""Speculative decoding, flat: draft gamma tokens, verify them in one forward pass, emit one more.

Leviathan et al. 2023, algorithm 1, for one request on two `CausalLM`s. `SpeculativeDecoder` does
the same for batches, trees, any proposer and any rule. Run it: python examples/one_loop.py
"""

from collections.abc import Collection, Sequence

import torch

import specdec as sd
from specdec.core.protocols import CausalLM
from specdec.core.randomness import RandomStream


@torch.inference_mode()
def speculate(
    verifier: CausalLM,
    draft: CausalLM,
    prompt: Sequence[int],
    sampling: sd.Sampling,
    gamma: int = 4,
    max_new_tokens: int = 64,
    end_ids: Collection[int] = (),
) -> list[int]:
    """Continue `prompt` with tokens that have exactly the verifier's distribution."""
    text, limit = list(prompt), len(prompt) + max_new_tokens
    for model in (verifier, draft):
        model.open(num_rows=1, capacity=limit + gamma)
        model.prefill([0], [text[:-1]])  # the last token is read together with the draft
    while len(text) < limit:
        noise = RandomStream("one loop", len(text))  # fresh for every step
        drafted, q = list[int](), list[torch.Tensor]()
        for _ in range(min(gamma, limit - len(text) - 1)):
            unread = torch.tensor([[*text, *drafted][draft.length(0) :]])
            q.append(sampling.warp(draft.forward([0], unread).logits[0, -1]))
            drafted.append(noise.choose(q[-1]))

        logits = verifier.forward([0], torch.tensor([[text[-1], *drafted]])).logits[0]
        p = sampling.warp(logits)  # [len(drafted) + 1, V]
        accepted, weights = 0, p[-1]  # of the bonus token, if all are accepted
        for token, p_row, q_row in zip(drafted, p, q, strict=False):
            if not noise.accept(float(p_row[token] / q_row[token])):
                weights = (p_row - q_row).clamp(min=0) + 1e-30 * p_row  # p if rounding leaves 0
                break
            accepted += 1

        for token in [*drafted[:accepted], noise.choose(weights)]:
            text.append(token)
            if token in end_ids:
                return text[len(prompt) :]
        for model in (verifier, draft):  # forget the rejected tokens
            model.keep(0, min(model.length(0), len(text) - 1))
    return text[len(prompt) :]


if __name__ == "__main__":
    large, small = sd.load("zoo:verifier"), sd.load("zoo:draft")
    tokens = speculate(large, small, large.encode("import os\n"), sd.Sampling(temperature=0.7))
    print(large.decode(tokens))
