"""Decode one text, and tell how it came about."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import accumulate

from specdec.core.errors import require_int
from specdec.core.sampling import Sampling
from specdec.core.values import Draw
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.lab.explanation.spelling import Spelt
from specdec.lab.explanation.steps import Telling, explained
from specdec.lab.explanation.watch import watching
from specdec.lm.hf import HFCausalLM
from specdec.proposer.tree_proposer import TreeProposer
from specdec.results.explanation import Explanation, NamedPart, Token

SENTENCE = re.compile(r"(?<=[.:;])\s")
CITED = re.compile(r" \([^()]*\b(et al\.|arXiv)[^()]*\)")
UNSAID = ("temperature", "processors", "from_checkpoint")
NO_CANDIDATES = "it has no candidates"
HOW: dict[Draw, str] = {
    Draw.DETERMINISTIC: "chosen for certain, so that each is a point mass to the rule",
    Draw.SINGLE: "drawn from q, one after each token",
    Draw.IID: "drawn from q, several times independently",
    Draw.WITHOUT_REPLACEMENT: "drawn from q, each without those drawn before it",
    Draw.TOP_PLUS_ONE: "the likeliest of q, then one drawn from the rest of it",
    Draw.FILTERED: "drawn from q, and put forward only if they pass a filter",
}


@dataclass(frozen=True)
class Names:
    """What the verifier and the parts are called."""

    verifier: str
    proposer: str
    tree: str
    rule: str


def explain(
    decoder: SpeculativeDecoder, request: Request, names: Names, num_likely: int = 5
) -> Explanation:
    """Decode one request, one step after the other, and tell each of them.

    The text is the one that the decoder writes when nobody looks on.

    Args:
        decoder: of one request in flight.
        request: what it decodes.
        names: what its parts are called.
        num_likely: tokens of each distribution that are told, the likeliest first.

    Raises:
        UserError: the request cannot be decoded.
    """
    require_int("top", num_likely, 1)
    verifier = decoder.verifier
    assert isinstance(verifier, HFCausalLM)
    with watching(decoder) as watch:
        (trace,) = decoder.decode([request])
    spelt = Spelt(verifier)
    telling = Telling(spelt, num_likely, decoder.sampling.temperature == 0)
    text = [*request.token_ids, *trace.output_ids]
    starts = accumulate((step.emitted for step in trace.steps), initial=len(request.token_ids))
    proposer = decoder.proposer
    return Explanation(
        prompt=spelt.text(request.token_ids),
        prompt_tokens=tuple(Token(spelt.token(each), each) for each in request.token_ids),
        verifier=names.verifier,
        proposer=NamedPart(names.proposer, purpose_of(proposer)),
        tree=_tree(proposer, names),
        draw=NO_CANDIDATES if proposer.draw is None else HOW[proposer.draw],
        rule=NamedPart(names.rule, purpose_of(decoder.rule)),
        lossless=decoder.lossless,
        sampling=", ".join(_sampling(decoder.sampling)),
        steps=tuple(
            explained(telling, text[:start], step, *seen)
            for start, step, seen in zip(starts, trace.steps, watch.steps, strict=False)
        ),
        text=trace.output_text,
        finish_reason=trace.finish_reason,
    )


def purpose_of(part: object) -> str:
    """Return the first sentence that a class says of itself, without what it cites."""
    paragraph = (inspect.getdoc(type(part)) or "").split("\n\n")[0]
    sentence = SENTENCE.split(CITED.sub("", " ".join(paragraph.split())))[0]
    return sentence.rstrip(".:;")


def _tree(proposer: object, names: Names) -> NamedPart | None:
    if not isinstance(proposer, TreeProposer):
        return None
    return NamedPart(names.tree, purpose_of(proposer.tree))


def _sampling(sampling: Sampling) -> Iterator[str]:
    """Say the temperature, and what differs from a plain draw."""
    yield f"temperature={sampling.temperature:g}"
    for each in fields(sampling):
        value = getattr(sampling, each.name)
        if each.name not in UNSAID and value != each.default:
            yield f"{each.name}={value}"
