"""Models of one family whose vocabularies are padded to unlike sizes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.lm.hf import HFCausalLM


def require_model(model: object, role: str) -> None:
    """Refuse a path in place of a model, or a model of transformers that nobody wrapped.

    Raises:
        UserError: it cannot be decoded with.
    """
    if not all(hasattr(model, name) for name in ("open", "forward", "keep", "prefill")):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise UserError(f"{role}: {kind} is no model to decode with; expected sd.load(PATH)")


def require_one_family(verifier: object, proposer: object) -> None:
    """Refuse drafts of another vocabulary or with the verifier's cache, and heads of another model.

    Raises:
        UserError: which of both it is. Models without a tokenizer cannot be told apart.
    """
    draft, seat = (getattr(proposer, name, None) for name in ("model", "verifier"))
    if not isinstance(verifier, HFCausalLM):
        return
    if draft is verifier:
        raise UserError(
            f"{type(proposer).__qualname__}: drafts with the very model that verifies, and each of"
            " both needs a cache of its own; expected sd.load(PATH) once more, which shares weights"
        )
    if isinstance(draft, HFCausalLM):
        called = f"draft model {draft.model.config._name_or_path!r}"
        require_shared_vocabulary(verifier, draft, called)
    if isinstance(seat, HFCausalLM) and seat.model is not verifier.model:
        raise UserError(
            f"{type(proposer).__qualname__}: its heads sit on another model than the one that"
            " verifies; expected the same for both"
        )


def require_shared_vocabulary(verifier: HFCausalLM, draft: HFCausalLM, called: str) -> None:
    """Compare token for token: sizes of logits are padded and say nothing about the tokenizer.

    One may have more tokens at its end. A complaint begins with what the draft is `called`.
    """
    if verifier.tokenizer is None or draft.tokenizer is None:
        return
    if draft.tokenizer is verifier.tokenizer:
        return
    ours, theirs = draft.tokenizer.get_vocab(), verifier.tokenizer.get_vocab()
    differing = num_conflicts(ours, theirs)
    if differing:
        raise UserError(
            f"{called}: its vocabulary of {len(ours)}"
            f" tokens is not the verifier's of {len(theirs)} ({differing} entries differ); a draft"
            " model must share the verifier's tokenizer"
        )


def num_conflicts(ours: Mapping[str, int], theirs: Mapping[str, int]) -> int:
    """Count the entries for which one vocabulary cannot stand for the other.

    Those behind the end of the shorter one are none: such tokens have no mass in one of two
    distributions, as padding has none.
    """
    end = min(max(each.values(), default=-1) for each in (ours, theirs))
    common = [{entry for entry in each.items() if entry[1] <= end} for each in (ours, theirs)]
    return len(common[0] ^ common[1])


def readable(token_ids: Sequence[int], vocab_size: int) -> Sequence[int]:
    """Let a model read what another one's padding may have written, as some other token."""
    if all(token < vocab_size for token in token_ids):
        return token_ids
    return [token if token < vocab_size else 0 for token in token_ids]


def known(token_ids: Tensor, vocab_size: int) -> Tensor:  # [...] -> [...]
    """Do as `readable` does, on the device: a model embeds no tokens but its own.

    Candidates of a draft model with fewer tokens than its verifier may be others where they only
    hold a place: left out of the tree, and of no consequence for what is read at their neighbours.
    """
    return token_ids.where(token_ids < vocab_size, 0)


def fitted(logits: Tensor, vocab_size: int) -> Tensor:  # [..., V of one] -> [..., V of the other]
    """Cut logits, or widen them by tokens that are impossible."""
    missing = vocab_size - logits.shape[-1]
    if missing == 0:
        return logits
    return torch.nn.functional.pad(logits, (0, missing), value=float("-inf"))
