"""A text explained is the one that is written when nobody looks; its numbers are the models'."""

import json
from dataclasses import replace

import pytest
import torch

import specdec as sd
from specdec.core.protocols import TreePolicy, VerificationRule
from specdec.lab.explanation.explain import Names, explain, purpose_of
from specdec.lab.explanation.spelling import Spelt
from specdec.results.explanation import Explanation
from specdec.verification.traversal import Traversal
from tests.support.running import Tiny

PROMPT = "def add(first, second):"
TREES: dict[str, TreePolicy] = {
    "chain": sd.Chain(3),
    "confident": sd.Chain(3, min_confidence=0.3),
    "sampled": sd.Sampled([2, 1], "without_replacement"),
    "filtered": sd.Filtered(3),
    "dynamic": sd.Dynamic(5),
    "best_first": sd.BestFirst(5),
    "sparse": sd.Sparse([[0], [1], [0, 0]]),
}
RULES: dict[str, VerificationRule] = {
    "rejection": sd.Rejection(),
    "traversal": Traversal(),
    "match": sd.Match(),
}


PAIRS = [
    (tree, rule)
    for tree, policy in TREES.items()
    for rule, deciding in RULES.items()
    if policy.draw in deciding.lossless_for
]


@pytest.fixture(scope="module")
def models(tiny: Tiny) -> tuple[sd.HFCausalLM, sd.HFCausalLM]:
    return sd.load(tiny.verifier), sd.load(tiny.draft)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("tree", "rule"), PAIRS)
def test_the_text_is_the_one_that_nobody_looked_at(
    models: tuple[sd.HFCausalLM, sd.HFCausalLM], tree: str, rule: str, temperature: float
) -> None:
    verifier, draft = models
    policy, deciding = TREES[tree], RULES[rule]
    proposer = sd.DraftModel(draft, policy)
    options = {"rule": deciding, "sampling": sd.Sampling(temperature), "max_new_tokens": 10}
    (trace,) = sd.generate(verifier, proposer, PROMPT, **options)  # pyright: ignore
    found = sd.explain(verifier, proposer, PROMPT, **options)  # pyright: ignore
    assert proposer.tree is policy
    assert found.text == trace.output_text
    assert [step.emitted for step in found.steps] == [step.emitted for step in trace.steps]
    assert [len(step.candidates) for step in found.steps] == [s.drafted for s in trace.steps]
    assert [len(step.accepted) for step in found.steps] == [s.accepted for s in trace.steps]
    (again,) = sd.generate(verifier, proposer, PROMPT, **options)  # pyright: ignore
    assert again.output_ids == trace.output_ids


def test_a_decoder_is_left_as_it_was(models: tuple[sd.HFCausalLM, sd.HFCausalLM]) -> None:
    verifier, rule, stopping = models[0], sd.Rejection(), sd.Stopping(4)
    decoder = sd.SpeculativeDecoder(verifier, sd.NGram(3), rule, stopping=stopping)
    request = sd.Request("text", verifier.encode(PROMPT))
    explain(decoder, request, Names("verifier", "ngram", "chain", "rejection"))
    assert decoder.rule is rule


def test_numbers_are_those_of_the_models(models: tuple[sd.HFCausalLM, sd.HFCausalLM]) -> None:
    verifier, draft = models
    found = sd.explain(verifier, sd.DraftModel(draft, sd.Dynamic(5)), PROMPT, max_new_tokens=6)
    step, spelt = found.steps[0], Spelt(verifier)
    ids = {spelt.token(number): number for number in range(verifier.vocab_size)}
    assert len(step.candidates) == 5
    whole = [each.token_id for each in found.prompt_tokens]
    for each in step.candidates:
        path = [each]
        while path[0].parent:
            path.insert(0, step.candidates[path[0].parent - 1])
        text = torch.tensor([[*whole, *(ids[one.text] for one in path[:-1])]])
        for model, shown in ((verifier, each.verifier), (draft, each.draft)):
            own = model.model(input_ids=text).logits[0, -1].softmax(-1).detach()
            assert shown == pytest.approx(float(own[ids[each.text]]), rel=1e-4)


def test_decisions_are_those_of_the_rule(models: tuple[sd.HFCausalLM, sd.HFCausalLM]) -> None:
    verifier, draft = models
    found = sd.explain(verifier, sd.DraftModel(draft, sd.Chain(4)), PROMPT, max_new_tokens=40)
    outcomes = set[str]()
    for step in found.steps:
        questions = [each for each in step.decisions if each.chance is not None]
        pairs = list(zip(questions, step.candidates, strict=False))
        assert len(questions) == min(len(step.accepted) + 1, len(step.candidates))
        for each, candidate in pairs:
            assert candidate.draft is not None
            ratio = min(1.0, candidate.verifier / candidate.draft)
            assert each.chance == pytest.approx(ratio, rel=1e-4)
            assert (each.answer == "yes") is (each.number < ratio)
            assert (candidate.fate == "accepted") is (each.answer == "yes")
        assert [c.fate for c in step.candidates].count("accepted") == len(step.accepted)
        assert step.decisions[-1].answer == step.own
        outcomes.add(step.own_kind)
    assert outcomes == {"bonus", "recovered"}


def test_what_is_likely_comes_in_order(models: tuple[sd.HFCausalLM, sd.HFCausalLM]) -> None:
    verifier, draft = models
    proposer = sd.DraftModel(draft, sd.Sparse([[0], [1], [0, 0]]))
    found = sd.explain(verifier, proposer, PROMPT, top=4, max_new_tokens=4)
    places = found.steps[0].draft_says
    assert [len(each.after) for each in places] == [0, 1]
    for place in places:
        chances = [each.probability for each in place.likely]
        assert chances == sorted(chances, reverse=True)
        assert place.possible == verifier.vocab_size
    assert [each.is_candidate for each in places[0].likely] == [True, True, False, False]
    assert [each.is_candidate for each in places[1].likely] == [True, False, False, False]


def test_what_is_left_out_is_said(models: tuple[sd.HFCausalLM, sd.HFCausalLM]) -> None:
    verifier, draft = models
    dynamic = sd.explain(verifier, sd.DraftModel(draft, sd.Dynamic(3)), PROMPT, max_new_tokens=4)
    assert dynamic.steps[0].num_left_out > 5 == len(dynamic.steps[0].left_out)
    chain = sd.explain(verifier, sd.DraftModel(draft, sd.Chain(3)), PROMPT, max_new_tokens=4)
    assert not any(step.num_left_out for step in chain.steps)
    # With a high bar nearly all that is drawn is withheld.
    filtered = sd.DraftModel(draft, sd.Filtered(3, min_prob=0.9))
    found = sd.explain(verifier, filtered, PROMPT, max_new_tokens=6)
    assert any(step.withheld for step in found.steps)
    assert "did not pass the filter" in str(found)


def test_without_probabilities_or_guesses(models: tuple[sd.HFCausalLM, sd.HFCausalLM]) -> None:
    verifier, _ = models
    repeated = sd.Request("repeated", [5, 6, 7, 5, 6, 7, 5, 6])
    copied = sd.explain(verifier, sd.NGram(3), repeated, max_new_tokens=4)
    step = copied.steps[0]
    assert len(step.candidates) == 3
    assert step.candidates[0].draft is None
    assert not step.draft_says
    assert copied.tree is None
    assert "copies what may come next" in str(copied)
    plain = sd.explain(verifier, sd.NoProposer(), PROMPT, max_new_tokens=4)
    assert plain.block_efficiency == 1
    assert "since there was no guess" in str(plain)


def test_greedy_decoding_leaves_nothing_to_chance(
    models: tuple[sd.HFCausalLM, sd.HFCausalLM],
) -> None:
    verifier, draft = models
    proposer = sd.DraftModel(draft, sd.Chain(3))
    found = sd.explain(verifier, proposer, PROMPT, sampling=sd.Sampling(0.0), max_new_tokens=6)
    assert not any(step.decisions for step in found.steps)
    assert found.steps[0].verifier_says[0].possible == 1


def test_token_ids_without_a_tokenizer(models: tuple[sd.HFCausalLM, sd.HFCausalLM]) -> None:
    verifier = sd.HFCausalLM(models[0].model)
    found = sd.explain(verifier, sd.NGram(3), sd.Request("a", [5, 6, 5, 6, 5]), max_new_tokens=4)
    assert [each.text for each in found.prompt_tokens] == ["<5>", "<6>", "<5>", "<6>", "<5>"]


def test_it_is_the_same_after_a_file(models: tuple[sd.HFCausalLM, sd.HFCausalLM]) -> None:
    verifier, draft = models
    found = sd.explain(verifier, sd.DraftModel(draft, sd.Dynamic(5)), PROMPT, max_new_tokens=6)
    assert Explanation.from_row(json.loads(json.dumps(found.to_row()))) == found
    assert "step 1, behind" in str(found)
    assert replace(found, steps=()).block_efficiency is None


def test_a_part_says_what_it_does() -> None:
    assert purpose_of(sd.Rejection()).startswith("Accept x ~ q with probability min(1, p(x)/q(x))")
    assert purpose_of(sd.Chain(3)) == "A chain of gamma draft tokens, each drawn from q"
    assert purpose_of(object()) != ""


def test_no_likely_tokens_are_refused(models: tuple[sd.HFCausalLM, sd.HFCausalLM]) -> None:
    with pytest.raises(sd.UserError, match="top=0"):
        sd.explain(models[0], sd.NoProposer(), PROMPT, top=0)
