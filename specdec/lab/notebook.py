"""What a notebook calls: decode and compare with objects, as the commands do with options."""

from collections.abc import Mapping, Sequence

from specdec.core.errors import UserError, require, require_int
from specdec.core.protocols import Proposer, VerificationRule
from specdec.core.sampling import Sampling
from specdec.core.trace import Trace
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.decoding.turns import Decodable, listed
from specdec.lab.arm import Arm
from specdec.lab.interleaving import Comparison, compete
from specdec.lab.prompt_options import PromptOptions
from specdec.lm.hf import HFCausalLM
from specdec.prompts import Prompt
from specdec.results.progress import Progress
from specdec.verification.rejection import Rejection

Entrant = Proposer | tuple[Proposer, VerificationRule]


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

    Returns:
        A trace for each turn of each prompt, in their order: its text, and of each step what was
        drafted, what was accepted, and seconds.

    Raises:
        UserError: the rule is not lossless for such candidates, or a prompt is too long.
    """
    stopping = Stopping.of(verifier, max_new_tokens, stop_strings, ignore_eos)
    decoder = SpeculativeDecoder(
        verifier,
        proposer,
        rule or Rejection(),
        sampling=sampling,
        stopping=stopping,
        batch=batch,
        seed=seed,
        allow_lossy=allow_lossy,
    )
    requests, whole = listed(prompts)
    number = len(requests) + sum(prompt.num_turns for prompt in whole)
    with Progress(number, "generate", "text") as bar:
        traces = decoder.decode(prompts)
        bar.update(number)
    return traces


def compare(
    verifier: HFCausalLM,
    proposers: Mapping[str, Entrant],
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
    reference: str | None = None,
) -> Comparison:
    """Let proposers decode the same prompts in turns, and say how they stand, with intervals.

    They take turns prompt by prompt, so that a machine that slows down does so for all of them.
    Speed is measured if one of them is `sd.NoProposer()`.

    Args:
        verifier: the large model, from `sd.load`.
        proposers: by the names that the table calls them by; `(proposer, rule)` has a rule of its
            own.
        prompts: texts, or prompts of `sd.load_prompts`.
        rule: of those without a rule of their own; None: rejection sampling.
        sampling: the distribution that tokens are drawn from; None: the model's own, temperature 1.
        max_new_tokens: of each text, at most.
        stop_strings: each ends a text; None: what the checkpoint says.
        ignore_eos: whether end tokens are tokens like any other.
        batch: requests in flight.
        seed: of all that is drawn.
        allow_lossy: whether a rule may be used that changes the distribution.
        reference: the name that others are compared with; None: the best.

    Returns:
        Traces, sums and summaries by name, and `table()`: a pandas frame. Where it was interrupted
        they are of the prompts that all have decoded, and `cut_short` says by what.

    Raises:
        UserError: there is nothing to compare, or a rule is not lossless for such candidates.
    """
    require(bool(proposers), "proposers", proposers, "at least one, {'none': sd.NoProposer()}")
    if reference is not None and reference not in proposers:
        expected = f"one of {', '.join(proposers)}"
        raise UserError(f"reference={reference!r}: expected {expected}")
    require_int("batch", batch, 1)
    whole = _prompts(prompts)
    stopping = Stopping.of(verifier, max_new_tokens, stop_strings, ignore_eos)

    def arm(name: str, entrant: Entrant) -> Arm:
        proposer, own = entrant if isinstance(entrant, tuple) else (entrant, rule or Rejection())
        decoder = SpeculativeDecoder(
            verifier,
            proposer,
            own,
            sampling=sampling,
            stopping=stopping,
            batch=batch,
            seed=seed,
            allow_lossy=allow_lossy,
        )
        return Arm(name, type(own).__name__.lower(), verifier, decoder, PromptOptions(""))

    arms = [arm(name, entrant) for name, entrant in proposers.items()]
    return compete(arms, arms[0].choose(whole), arms[0].turn_size, reference)


def _prompts(prompts: Decodable | Sequence[Decodable]) -> list[Prompt]:
    requests, whole = listed(prompts)
    if requests or not whole:
        found: Request | str = requests[0] if requests else "nothing"
        raise UserError(f"{found!r}: cannot be compared on; expected texts or sd.load_prompts(...)")
    return whole
