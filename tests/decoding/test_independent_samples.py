"""Several samples of a prompt: independent, reproducible, and the first is the prompt's own."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling
from specdec.core.trace import PlainSteps, TextKey, Trace
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.decoding.turns import decode_turns
from specdec.metrics import Tally, block_efficiency
from specdec.prompts import Message, Prompt
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.none import NoProposer
from specdec.tree.chain import Chain
from tests.support.arms import PROMPT, PROPOSERS, TARGET, V, decoder
from tests.support.joint_distribution import FALSE_ALARM, fit
from tests.support.toy import TextDistribution, table_lm, text_distribution

NAMES = [name for name in PROPOSERS if name != "recorded"]  # which knows texts by name


def spelt(token_ids: Sequence[int], **_: object) -> str:
    return "".join("abc"[token] for token in token_ids)


def samples(number: int, prompt_id: str = "p") -> list[Request]:
    return [Request(prompt_id, PROMPT, sample=sample) for sample in range(number)]


@pytest.mark.parametrize("name", NAMES)
def test_samples_differ_are_reproducible_and_begin_with_the_prompts_own(name: str) -> None:
    several = [*samples(6), *samples(6, "q")]

    def found(batch: int, of: list[Request]) -> dict[TextKey, tuple[tuple[int, ...], int]]:
        traces = decoder(PROPOSERS[name](), stopping=Stopping(9), batch=batch).decode(of)
        return {trace.key: (trace.output_ids, len(trace.steps)) for trace in traces}

    alone = found(1, several)
    assert len({text for text, _ in alone.values()}) > 10
    assert found(5, several[::-1]) == alone
    assert found(1, samples(3)).items() <= alone.items(), "more samples change the others"
    assert found(1, [Request("p", PROMPT)]) == {("p", 0, 0): alone["p", 0, 0]}


def test_pairs_of_samples_have_the_product_of_their_distributions() -> None:
    """Decoded with a draft and side by side: nothing of one sample's noise is in another."""
    distribution = text_distribution(TARGET, 2, prompt=PROMPT)
    draft = DraftModel(table_lm(TARGET, V), Chain(2), temperature=0.5)
    traces = decoder(draft, stopping=Stopping(2), batch=8).decode(samples(3000))
    texts = [trace.output_ids for trace in traces]
    pairs = [first + second for first, second in zip(texts[::2], texts[1::2], strict=True)]
    both: TextDistribution = {
        a + b: distribution[a] * distribution[b] for a in distribution for b in distribution
    }
    assert fit(pairs, both).p_value > FALSE_ALARM
    assert fit([text + text for text in texts[::2]], both).p_value < FALSE_ALARM


def test_every_turn_follows_the_answers_of_its_own_sample() -> None:
    prompt = Prompt("p", "", ((Message("user", "a"),),) * 3)
    given: dict[tuple[int, int], list[str]] = {}

    def request(prompt: Prompt, answers: Sequence[str]) -> Request:
        given[prompt.sample, len(answers)] = list(answers)
        return Request("p", PROMPT, turn=len(answers), sample=prompt.sample)

    speculative = decoder(NoProposer(), stopping=Stopping(9))
    tokenizer = SimpleNamespace(all_special_ids=[], decode=spelt)
    found = list(decode_turns(prompt.samples(4), request, speculative.stream, tokenizer, 99))
    texts = {(trace.sample, trace.turn): spelt(trace.output_ids) for trace in found}
    assert len(texts) == 12
    for (sample, turn), answers in given.items():
        assert answers == [texts[sample, before] for before in range(turn)]


def test_a_trace_says_which_sample_it_is_and_rows_without_one_are_of_the_first() -> None:
    trace = decoder(NoProposer(), stopping=Stopping(4)).decode(samples(3))[2]
    row = trace.to_row()
    assert (trace.sample, row["sample"]) == (2, 2)
    assert Trace.from_row(row) == trace
    assert Trace.from_row({n: v for n, v in row.items() if n != "sample"}).sample == 0
    assert PlainSteps.of(trace).key == trace.key == ("p", 2, 0)


def test_the_unit_of_intervals_is_the_prompt_however_many_samples_it_has() -> None:
    several = [each for name in "abcdefgh" for each in samples(5, name)]
    draft = PROPOSERS["draft_model"]()
    traces = decoder(draft, stopping=Stopping(9)).decode(several)
    clock = [PlainSteps.of(t) for t in decoder(NoProposer(), stopping=Stopping(9)).decode(several)]
    tally = Tally.of(traces, clock)
    assert tally.num_prompts == 8
    assert tally.column("num_turns").tolist() == [5.0] * 8
    assert tally.total("clocked.num_steps") == tally.total("num_steps"), "one has no clock"
    # As if each prompt's samples were turns of one text.
    joined = Tally.of([replace(trace, turn=trace.sample, sample=0) for trace in traces])
    assert block_efficiency(tally) == block_efficiency(joined)
    assert block_efficiency(tally).n == 8


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), Sampling(top_k=1)])
def test_samples_that_would_all_be_the_same_are_refused(sampling: Sampling) -> None:
    greedy = decoder(NoProposer(), sampling=sampling, stopping=Stopping(4))
    with pytest.raises(UserError, match=r"num_samples=2: at .* are the same text; expected 1, or"):
        greedy.decode(samples(2))
    assert len(greedy.decode(samples(1))) == 1


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "4"])
def test_a_number_of_samples_is_a_positive_integer(number: int) -> None:
    with pytest.raises(UserError, match=r"prompts\.num_samples"):
        Prompt("p", "", ((Message("user", "a"),),)).samples(number)
