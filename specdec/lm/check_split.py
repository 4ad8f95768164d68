"""The proof that a model's layers can be read in two parts: some draft, the rest goes on there.

A model whose layers hand more to each other than states (values of the first layer, inputs of their
own) would verify wrongly. So a ragged batch with a branching tree is drafted in part, read to the
end, rewound and gone on with, and compared with the same model read whole.
"""

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from specdec.cache.clear import Clear
from specdec.cache.policy import NONE
from specdec.core.errors import UserError, first_line
from specdec.core.tree import CandidateTree
from specdec.lm.batch import TreeBatch
from specdec.lm.cached_as import cached_like
from specdec.lm.clearing import ClearingLM
from specdec.lm.encoder_decoder import EncoderDecoderLM
from specdec.lm.hf import HFCausalLM
from specdec.lm.layer_kinds import is_recurrent
from specdec.lm.layer_split import LayerSplit
from specdec.lm.placement import SPREAD, is_whole
from specdec.lm.recomputing import RecomputingLM
from specdec.lm.recurrent import RecurrentLM
from specdec.lm.self_drafting import SelfDrafting
from specdec.runtime.agreement import TOLERANCE, relative_difference
from specdec.runtime.choice import AUTO, EAGER

PARENTS = (-1, 0, 0, 1, 2, 2)
KEPT = (0, 2, 5)
WHOLE = "cannot draft with its own layers"
SPREAD_OUT = "its weights are spread, shared, or rounded by transformers"


def why_whole(config: PreTrainedConfig) -> str | None:
    """Say why no layers of such a model can be run apart; None: its configuration does not tell."""
    if config.is_encoder_decoder:
        return EncoderDecoderLM.reads_whole
    return RecurrentLM.reads_whole if is_recurrent(config) else None


def require_split_options(called: str, cache: object, runtime: str, **others: object) -> None:
    """Refuse how a model is loaded, if its layers cannot be run apart then.

    Args:
        called: how the message begins.
        cache: its policy, or none.
        runtime: that it is run by.
        others: `device` and `tp_plan`.

    Raises:
        UserError: so it is.
    """
    reason = {NONE: RecomputingLM.reads_whole}.get(str(cache))
    if isinstance(cache, Clear) and (cache.max_tokens or cache.max_bytes):
        reason = ClearingLM.reads_whole
    if runtime not in (EAGER, AUTO):
        reason = _run_by(runtime)
    if others.get("device") == SPREAD or others.get("tp_plan") is not None:
        reason = SPREAD_OUT
    if reason is not None:
        raise UserError(f"{called}: the verifier {WHOLE}: {reason}")


def require_parts(lm: HFCausalLM, called: str) -> None:
    """Refuse a model whose layers nobody can run apart; complaints begin `called`.

    Raises:
        UserError: it is one.
    """
    kind = f"{called}: {lm.model.config.model_type} {WHOLE}"
    if lm.reads_whole is not None:
        raise UserError(f"{kind}: {lm.reads_whole}")
    if lm.runtime not in (EAGER, AUTO):
        raise UserError(f"{kind}: {_run_by(lm.runtime)}")
    if not is_whole(lm.model):
        raise UserError(f"{kind}: {SPREAD_OUT}")


def _run_by(runtime: str) -> str:
    return f"they are run by runtime={EAGER} alone, not by {runtime!r}"


def require_splits(lm: HFCausalLM, split: LayerSplit, called: str) -> None:
    """Refuse a model that says something else in two parts than whole; complaints begin `called`.

    Raises:
        UserError: it does, or cannot be called in parts.
    """
    kind = f"{called}: {lm.model.config.model_type} {WHOLE}"
    try:
        error = split_error(lm, split)
    except Exception as problem:  # whatever foreign code raises, it cannot be used
        raise UserError(f"{kind} ({first_line(problem)})") from problem
    tolerance = TOLERANCE.get(lm.model.dtype, TOLERANCE[torch.float32])
    if not error <= tolerance:
        allowed = f"{lm.dtype} allows {tolerance:.0e}"
        raise UserError(
            f"{kind}: read in two parts it differs from itself by {error:.1e} (relative; {allowed})"
        )


@torch.inference_mode()
def split_error(lm: HFCausalLM, split: LayerSplit) -> float:
    """Return the largest relative difference between a model in two parts and the same, whole."""
    whole, parts = cached_like(lm, lm.model), cached_like(lm, lm.model)
    drafting = SelfDrafting(parts, split)
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randint(lm.vocab_size, shape, generator=generator).to(lm.device)

    texts = [some(5).tolist(), some(3).tolist()]
    for each in (whole, parts):
        each.open(2, 16)
        each.prefill([0, 1], texts)
    nodes = some(2, len(PARENTS))
    trees = [CandidateTree(tuple(row), PARENTS) for row in nodes.tolist()]

    # 1) Draft the root and its two children; the nodes below them are read with the rest.
    starts = [whole.length(row) for row in (0, 1)]
    first = [CandidateTree(tree.token_ids[:3], PARENTS[:3]) for tree in trees]
    _, positions, attend = TreeBatch.of(first, starts, lm.device)
    assert positions is not None
    assert attend is not None
    drafting.start([0, 1])
    drafting.draft(nodes[:, :1])
    parents = torch.zeros_like(nodes[:, 1:3])
    # In another order than the tree has them, so that cells have to move.
    drafting.draft(nodes[:, [2, 1]], parents, positions[:, 1:], attend[:, 1:])
    found = drafting.finish([0, 1], trees)
    plain = whole.forward([0, 1], *TreeBatch.of(trees, starts, lm.device))

    # 2) Accept a path in each row and go on from there.
    for each in (whole, parts):
        for row in (0, 1):
            each.keep(row, starts[row], KEPT)
    following = some(2, 1)
    after = [each.forward([0, 1], following).logits for each in (parts, whole)]
    pairs = [(found.logits, plain.logits), (after[0], after[1])]
    return max(
        relative_difference(ours[row, node], theirs[row, node])
        for ours, theirs in pairs
        for row in (0, 1)
        for node in range(ours.shape[1])
    )
