"""Whether models are of one family: their vocabularies may be padded to unlike sizes."""

from collections.abc import Mapping

from specdec.core.errors import UserError
from specdec.core.protocols import SourceReader
from specdec.lm.hf import HFCausalLM

UNLIKE_SIDES = {
    False: "has no encoder, to read the verifier's source with; expected an encoder-decoder model",
    True: "has an encoder, and the verifier has no source for it; expected a decoder alone",
}


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
        require_read(verifier, draft, called)
        require_same_sides(verifier, draft, called)
    if isinstance(seat, HFCausalLM) and seat.model is not verifier.model:
        raise UserError(
            f"{type(proposer).__qualname__}: its heads sit on another model than the one that"
            " verifies; expected the same for both"
        )
    inner = getattr(proposer, "inner", None)  # which drafts for the draft of a cascade
    if inner is not None:
        require_one_family(verifier, inner)


def require_read(verifier: HFCausalLM, draft: HFCausalLM, called: str) -> None:
    """Refuse a draft that does not read the verifier's tokens.

    Raises:
        UserError: it has others, and was loaded for no others or for those of another model.
    """
    if draft.translation is None:
        instead = ", or be loaded with vocabulary_of and vocabulary='intersection' or 'strings'"
        return require_shared_vocabulary(verifier, draft, called, instead)
    read = draft.translation.verifier.tokenizer
    own = verifier.tokenizer
    if own is None or (own is not read and own.get_vocab() != read.get_vocab()):
        raise UserError(
            f"{called}: loaded to read the tokens of another model than this verifier; expected"
            " the verifier as vocabulary_of"
        )


def require_same_sides(verifier: HFCausalLM, draft: HFCausalLM, called: str) -> None:
    """Refuse a draft without an encoder where the verifier has one, and the other way round.

    Raises:
        UserError: so it is, or their texts begin with unlike tokens.
    """
    reads, drafts = isinstance(verifier, SourceReader), isinstance(draft, SourceReader)
    if reads != drafts:
        raise UserError(f"{called}: {UNLIKE_SIDES[drafts]}")
    if isinstance(verifier, SourceReader) and isinstance(draft, SourceReader):
        ours, theirs = draft.start_id, verifier.start_id
        if ours != theirs:
            raise UserError(
                f"{called}: its texts begin with token {ours}, and the verifier's with {theirs}"
            )


def require_shared_vocabulary(
    verifier: HFCausalLM, draft: HFCausalLM, called: str, instead: str = ""
) -> None:
    """Compare token for token: sizes of logits are padded and say nothing about the tokenizer.

    One may have more tokens at its end. A complaint begins with what the draft is `called`, and
    ends with what else can be done `instead`.
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
            f" model must share the verifier's tokenizer{instead}"
        )


def num_conflicts(ours: Mapping[str, int], theirs: Mapping[str, int]) -> int:
    """Count the entries for which one vocabulary cannot stand for the other.

    Those behind the end of the shorter one are none: such tokens have no mass in one of two
    distributions, as padding has none.
    """
    end = min(max(each.values(), default=-1) for each in (ours, theirs))
    common = [{entry for entry in each.items() if entry[1] <= end} for each in (ours, theirs)]
    return len(common[0] ^ common[1])
