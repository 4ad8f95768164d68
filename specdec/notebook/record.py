"""`sd.record`: what `specdec-record` does, with objects."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from specdec.core.digest import digest_of
from specdec.core.errors import require_int
from specdec.core.protocols import Proposer, VerificationRule
from specdec.core.sampling import Sampling
from specdec.core.trace import Trace
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.stopping import Stopping
from specdec.lab.arm import Arm
from specdec.lab.described import described
from specdec.lab.interleaving import expect
from specdec.lab.prompt_options import PromptOptions
from specdec.lab.record import writing_into
from specdec.lab.rendered_runs import texts_of
from specdec.lm.hf import HFCausalLM
from specdec.notebook.given import folder_of, require_verifier
from specdec.notebook.prompts import Prompts, prompts_of
from specdec.prompts import Prompt
from specdec.proposer.none import NoProposer
from specdec.recording.recorded import Recording, read_recording
from specdec.recording.scoring import score
from specdec.recording.texts import Text
from specdec.results.progress import Progress
from specdec.verification.rejection import Rejection

PROMPTS_AT_ONCE = 64  # what an interruption may cost


def record(
    verifier: HFCausalLM,
    prompts: Prompts,
    folder: str | Path,
    *,
    proposer: Proposer | None = None,
    rule: VerificationRule | None = None,
    sampling: Sampling | None = None,
    max_new_tokens: int = 128,
    stop_strings: Sequence[str] | None = None,
    ignore_eos: bool = False,
    batch: int = 1,
    seed: int = 0,
    top_k: int = 64,
) -> Recording:
    """Let the verifier write texts, and keep them with how likely it found each token.

    `sd.replay` then computes the acceptance of any number of configurations from it. Called again
    with the same arguments it resumes, or reads what is complete. Shows a progress bar.

    Args:
        verifier, prompts, sampling, max_new_tokens, stop_strings, ignore_eos, batch: as in
            `sd.generate`.
        folder: of the recording.
        proposer: speeds the writing up, losslessly; None: `sd.NoProposer()`.
        rule: decides on its candidates; None: rejection sampling.
        seed: of all that is drawn.
        top_k: how many of the likeliest tokens are kept of each distribution.

    Returns:
        The recording: texts, and the log-probability of each of their tokens, in nats.

    Raises:
        UserError: the folder holds another recording, or the rule is not lossless.
    """
    require_verifier(verifier)
    place = folder_of("folder", folder)
    require_int("top_k", top_k, 1)
    ends = Stopping.of(verifier, max_new_tokens, stop_strings, ignore_eos)
    proposer = NoProposer() if proposer is None else proposer
    parts = verifier, proposer, Rejection() if rule is None else rule, sampling, ends
    arm = Arm("record", "", verifier, SpeculativeDecoder(*parts, batch, seed), PromptOptions(""))
    whole = arm.choose(prompts_of(prompts))
    expect([arm], whole)
    source = f"sd.record of prompts {_digest(arm, whole, sampling)}, seed {seed}"
    drawn = arm.decoder.sampling
    with writing_into(place, verifier, drawn, ends, top_k, source) as writer:
        left = [each for each in whole if (*each.key, each.num_turns - 1) not in writer.done]
        for texts in _written(arm, left, max_new_tokens):
            unscored = [text for text in texts if text.key not in writer.done]
            for scored in score(unscored, verifier, drawn, top_k):
                writer.add(scored)
    return read_recording(place)


def _digest(arm: Arm, prompts: Sequence[Prompt], sampling: Sampling | None) -> str:
    """Identify prompts by what the verifier reads of them, and what processes its logits."""
    read = [(prompt.key, prompt.turns, arm.request(prompt, ()).token_ids) for prompt in prompts]
    processors = () if sampling is None else sampling.processors
    return digest_of(repr((read, described(list(processors)))).encode())[:12]


def _written(arm: Arm, prompts: Sequence[Prompt], max_new_tokens: int) -> Iterator[list[Text]]:
    """Decode some prompts at a time."""
    with Progress(sum(prompt.num_turns for prompt in prompts), "record", "text") as bar:
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            some, traces = prompts[start : start + PROMPTS_AT_ONCE], list[Trace]()
            for trace in arm.decode(some):
                traces.append(trace)
                bar.update()
            yield texts_of(traces, some, arm.prompts.rendering, arm.verifier, max_new_tokens)
