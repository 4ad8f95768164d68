"""`sd.explain`: what `specdec-explain` does, with objects."""

from specdec.core.protocols import Proposer, VerificationRule
from specdec.core.sampling import Sampling
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.decoding.turns import listed, request_of
from specdec.lab.explanation.explain import Names
from specdec.lab.explanation.explain import explain as explained
from specdec.lm.hf import HFCausalLM
from specdec.notebook.given import require_verifier
from specdec.prompts import Prompt
from specdec.results.explanation import Explanation
from specdec.verification.rejection import Rejection


def explain(
    verifier: HFCausalLM,
    proposer: Proposer,
    prompt: Request | Prompt | str,
    *,
    rule: VerificationRule | None = None,
    sampling: Sampling | None = None,
    max_new_tokens: int = 16,
    top: int = 5,
    seed: int = 0,
    allow_lossy: bool = False,
) -> Explanation:
    """Decode one text and tell it step by step, for people new to speculative decoding.

    Args:
        verifier: the large model, from `sd.load`.
        proposer: what guesses the next tokens.
        prompt: a text, the first turn of a prompt of `sd.load_prompts`, or a request of token ids.
        rule: decides which candidates survive; None: rejection sampling.
        sampling: the distribution that tokens are drawn from; None: the model's own, temperature 1.
        max_new_tokens: of the text, at most.
        top: tokens of each distribution that are told, the likeliest first.
        seed: of all that is drawn.
        allow_lossy: whether a rule may be used that changes the distribution.

    Returns:
        Each step: what was put forward, both models' probabilities, and what was decided by which
        numbers. `print` of it is what the command prints.

    Raises:
        UserError: as of `sd.generate`.
    """
    require_verifier(verifier)
    ends = Stopping.of(verifier, max_new_tokens)
    deciding = Rejection() if rule is None else rule
    parts = verifier, proposer, deciding, sampling, ends
    decoder = SpeculativeDecoder(*parts, seed=seed, allow_lossy=allow_lossy)
    requests, prompts = listed(prompt)
    request = requests[0] if requests else request_of(prompts[0], [], verifier)
    tree = getattr(proposer, "tree", None)
    names = (type(part).__name__ for part in (verifier.model, proposer, tree, deciding))
    return explained(decoder, request, Names(*names), top)
