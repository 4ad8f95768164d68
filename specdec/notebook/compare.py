"""`sd.compare`: what `specdec-compare` does, with objects."""

from collections.abc import Mapping, Sequence

from specdec.core.errors import require, require_bool, require_int
from specdec.core.protocols import Learner, Pace, VerificationRule
from specdec.core.sampling import Sampling
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.stopping import Stopping
from specdec.lab.arm import Arm
from specdec.lab.interleaving import Comparison, compete, expect
from specdec.lab.prompt_options import PromptOptions
from specdec.lm.hf import HFCausalLM
from specdec.notebook.entrant import Entrant, Pair, learners_of, pairs_of
from specdec.notebook.given import require_verifier
from specdec.notebook.prompts import Prompts, prompts_of
from specdec.prompts import Prompt


def compare(
    verifier: HFCausalLM,
    proposers: Mapping[str, Entrant],
    prompts: Prompts,
    *,
    rule: VerificationRule | None = None,
    sampling: Sampling | None = None,
    max_new_tokens: int = 128,
    stop_strings: Sequence[str] | None = None,
    ignore_eos: bool = False,
    batch: int = 1,
    seed: int = 0,
    allow_lossy: bool = False,
    paces: Mapping[str, Pace] | None = None,
    reference: str | None = None,
    learners: Mapping[str, Learner] | None = None,
) -> Comparison:
    """Let proposers decode the same prompts in turns, and say how they stand, with intervals.

    They take turns prompt by prompt, so that a machine that slows down does so for all of them.
    Speed is reported if one of them is `sd.NoProposer()`. Shows a progress bar.

    Args:
        verifier: the large model, from `sd.load`.
        proposers: by the names that the table has; `(proposer, rule)` has a rule of its own.
        prompts: texts, or prompts of `sd.load_prompts`.
        rule: of those without a rule of their own; None: rejection sampling.
        sampling: the distribution that tokens are drawn from; None: the model's own, temperature 1.
        max_new_tokens, stop_strings, ignore_eos, batch, seed, allow_lossy: as in `sd.generate`.
        paces: of those whose steps choose their depth, by name, `{"mine": sd.Adaptive()}`.
        reference: the name that others are compared with; None: the best.
        learners: by name, what makes a proposer better while it drafts, which is then no other
            entrant's, too.

    Returns:
        Traces, sums and summaries by name, and `table()`: a pandas frame. Where it was cut short,
        sums and summaries are of the prompts that all have decoded, and `cut_short` says by what.

    Raises:
        UserError: there is nothing to compare, or a rule is not lossless for such candidates.
    """
    require_verifier(verifier)
    require_bool("allow_lossy", allow_lossy)
    pairs = pairs_of(verifier, proposers, rule, reference)
    require_int("batch", batch, 1)
    taught = learners_of(pairs, learners)
    strange = next((name for name in paces or {} if name not in pairs), None)
    require(strange is None, "paces", strange, f"names of proposers, {', '.join(pairs)}")
    whole = prompts_of(prompts)
    ends = Stopping.of(verifier, max_new_tokens, stop_strings, ignore_eos)

    def arm(name: str, pair: Pair) -> Arm:
        parts = verifier, *pair, sampling, ends
        learner, pace = taught.get(name), (paces or {}).get(name)
        decoder = SpeculativeDecoder(*parts, batch, seed, allow_lossy, learner=learner, pace=pace)
        return Arm(name, type(pair[1]).__name__.lower(), verifier, decoder, PromptOptions(""))

    arms = [arm(name, pair) for name, pair in pairs.items()]
    return _competed(arms, whole, reference)


def _competed(arms: Sequence[Arm], prompts: Sequence[Prompt], reference: str | None) -> Comparison:
    """Say what cut it short, and raise that where there is nothing to be lost."""
    chosen = arms[0].choose(prompts)
    expect(arms, chosen)
    found = compete(arms, chosen, arms[0].turn_size, reference)
    if found.cut_short is not None:
        if not found.summaries:
            raise found.cut_short
        print(f"cut short after {found.num_done} of {found.num_prompts} prompts: {found.cut_short}")
    return found
