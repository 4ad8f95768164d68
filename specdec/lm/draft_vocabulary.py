"""Whether a draft model has the verifier's tokens, or how it does without: weights unread."""

from specdec.core.errors import UserError, require
from specdec.lm.checkpoint import Checkpoint
from specdec.lm.mask import PREFIX_LM
from specdec.lm.translation import (
    INTERSECTION,
    SAME,
    STRINGS,
    VOCABULARIES,
    Translation,
    translated,
)
from specdec.lm.vocabularies import num_conflicts


def vocabulary_between(
    draft: Checkpoint,
    verifier: Checkpoint | None,
    vocabulary: str = SAME,
    attention: str | None = None,
) -> Translation | None:
    """Say how a draft model reads a verifier's tokens; None: they are its own.

    Args:
        draft: the draft model; its path is what complaints are about.
        verifier: whose text it reads; None: nobody's but its own.
        vocabulary: same, intersection or strings; see `specdec.lm.translation`.
        attention: that the draft is loaded with.

    Raises:
        UserError: their tokens differ and are meant to be the same, or they have too little in
            common for what is asked for, or the draft has no such use.
    """
    option = draft.option("vocabulary")
    require(vocabulary in VOCABULARIES, option, vocabulary, "one of " + ", ".join(VOCABULARIES))
    if vocabulary == SAME:
        if verifier is not None:
            require_same_vocabulary(draft, verifier)
        return None
    if verifier is None:
        expected = f"{SAME}, or vocabulary_of, the verifier whose text it reads"
        require(False, option, vocabulary, expected)
        return None
    if draft.config.is_encoder_decoder or verifier.config.is_encoder_decoder:
        raise UserError(
            f"{option}={vocabulary!r}: a source is not read in other tokens; expected {SAME} beside"
            " an encoder"
        )
    if attention == PREFIX_LM:
        raise UserError(
            f"{option}={vocabulary!r}: the last tokens of a prompt may become others, and"
            f" attention={PREFIX_LM} reads a prompt once and whole; expected another attention"
        )
    return translated(vocabulary, verifier.tokenizer, draft.tokenizer, draft.called, option)


def require_same_vocabulary(checkpoint: Checkpoint, other: Checkpoint) -> None:
    """Refuse a draft of which tokens mean others, as far as both vocabularies go."""
    ours, theirs = checkpoint.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    differing = num_conflicts(ours, theirs)
    if not differing:
        return
    # Another path than one of a draft is of something that is trained: in no other tokens.
    option, drafts = checkpoint.option("vocabulary"), checkpoint.field in ("path", "draft.path")
    instead = f", unless {option}={INTERSECTION} or {STRINGS}" if drafts else ""
    raise UserError(
        f"{checkpoint.called}: its vocabulary of {len(ours)} tokens is not that of"
        f" {other.called} with {len(theirs)} ({differing} entries differ);"
        f" a draft model must share the verifier's tokenizer{instead}"
    )
