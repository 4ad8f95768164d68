"""`sd.generate`: what `specdec-decode` does, with objects."""

from collections.abc import Sequence

from specdec.core.errors import require_bool
from specdec.core.protocols import Learner, Pace, Proposer, VerificationRule
from specdec.core.sampling import Sampling
from specdec.core.trace import Trace
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.stopping import Stopping
from specdec.decoding.turns import Decodable, listed
from specdec.lm.hf import HFCausalLM
from specdec.notebook.given import require_verifier
from specdec.results.progress import Progress
from specdec.verification.rejection import Rejection


def generate(
    verifier: HFCausalLM,
    proposer: Proposer,
    prompts: Decodable | Sequence[Decodable],
    *,
    rule: VerificationRule | None = None,
    sampling: Sampling | None = None,
    max_new_tokens: int = 128,
    stop_strings: Sequence[str] | None = None,
    ignore_eos: bool = False,
    batch: int = 1,
    seed: int = 0,
    allow_lossy: bool = False,
    learner: Learner | None = None,
    pace: Pace | None = None,
) -> list[Trace]:
    """Decode prompts speculatively (Leviathan et al. 2023; Chen et al. 2023), with a progress bar.

    With a lossless rule the texts have exactly the verifier's distribution.

    Args:
        verifier: the large model, from `sd.load`.
        proposer: what guesses the next tokens; `sd.NoProposer()` is autoregressive decoding.
        prompts: texts, prompts of `sd.load_prompts`, or requests of token ids.
        rule: decides which candidates survive; None: rejection sampling.
        sampling: the distribution that tokens are drawn from; None: the model's own, temperature 1.
        max_new_tokens: of each text, at most.
        stop_strings: each ends a text; None: what the checkpoint says.
        ignore_eos: whether end tokens are tokens like any other.
        batch: requests in flight.
        seed: of all that is drawn.
        allow_lossy: whether a rule may be used that changes the distribution.
        learner: what makes the proposer better while it drafts, from
            `sd.OnlineDistillation(...).teach(proposer, verifier)`; None: it stays as it is.
        pace: how deep candidates go at each step, `sd.Adaptive()`; None: as deep as they can.

    Returns:
        A trace for each turn of each prompt, in their order: its text, and of each step what was
        drafted, what was accepted, and seconds.

    Raises:
        UserError: the rule is not lossless for such candidates, or a prompt is too long.
    """
    require_verifier(verifier)
    require_bool("allow_lossy", allow_lossy)
    ends = Stopping.of(verifier, max_new_tokens, stop_strings, ignore_eos)
    parts = verifier, proposer, Rejection() if rule is None else rule, sampling, ends
    decoder = SpeculativeDecoder(*parts, batch, seed, allow_lossy, learner=learner, pace=pace)
    requests, whole = listed(prompts)
    number = len(requests) + sum(prompt.num_turns for prompt in whole)
    with Progress(number, "generate", "text") as bar:
        return decoder.decode(prompts, see=lambda trace: bar.update())
