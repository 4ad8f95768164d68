"""What a notebook calls: the same numbers as the commands, as values."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import specdec
from tests.support.running import CommandLine, Tiny

sd: Any = specdec  # whose types would refuse some of what is tried here
NGRAM = sd.NGram(2)


@pytest.fixture(scope="module")
def verifier(tiny: Tiny) -> Any:
    return sd.load(tiny.verifier)


def test_texts_are_those_of_the_decoder(verifier: Any) -> None:
    stopping = sd.Stopping.of(verifier, max_new_tokens=6)
    decoder = sd.SpeculativeDecoder(
        verifier, sd.NGram(2), sd.Rejection(), sd.Sampling(1.0), stopping, seed=3
    )
    options = {"sampling": sd.Sampling(1.0), "max_new_tokens": 6, "seed": 3}
    found = sd.generate(verifier, sd.NGram(2), ["def add(", "print("], **options)
    assert [t.output_ids for t in found] == [
        t.output_ids for t in decoder.decode(["def add(", "print("])
    ]


@pytest.mark.whole
def test_a_comparison_has_the_numbers_of_the_command(
    verifier: Any, cli: CommandLine, tiny: Tiny, empty_folder: Path
) -> None:
    arms = 'arms=["proposer=none","proposer=ngram tree.gamma=2"]'
    assert cli("compare", *tiny.options("run", arms)).status == 0
    saved = pd.read_csv("run/summary.csv").set_index("arm")
    proposers = {"none": sd.NoProposer(), "ngram": sd.NGram(2)}
    greedy = {"sampling": sd.Sampling(0), "max_new_tokens": 12}
    found = sd.compare(verifier, proposers, sd.load_prompts(tiny.prompts), **greedy)
    table = found.table()
    assert list(table.index) == ["none", "ngram"]
    assert sorted(table["block_efficiency"]) == sorted(saved["block_efficiency"])
    assert table.loc["ngram", "same_text_equal"] == 3
    assert len(found.traces["ngram"]) == 3
    assert found.cut_short is None


def test_a_pair_has_a_rule_of_its_own(verifier: Any) -> None:
    proposers = {"a": sd.NGram(2), "b": (sd.NGram(2), sd.Match())}
    found = sd.compare(verifier, proposers, ["def add("], max_new_tokens=4)
    assert [arm.rule for arm in found.arms] == ["rejection", "match"]


@pytest.mark.parametrize(
    ("proposers", "prompts", "options", "said"),
    [
        ({}, ["x"], {}, "at least one"),
        ({"a": NGRAM}, [], {}, "expected texts, or prompts"),
        ({"a": 1}, ["x"], {}, "no proposer, since it has no"),
        ([NGRAM], ["x"], {}, "proposers=.*a dict"),
        ({"a": (NGRAM,)}, ["x"], {}, "expected a proposer, or"),
        ({"a": sd.NGram}, ["x"], {}, "a class; expected an object"),
        ({"a": NGRAM}, ["x"], {"reference": "b"}, "reference='b': expected one of a"),
        ({"a": NGRAM}, ["x"], {"reference": ["a"]}, "reference="),
        ({"a": NGRAM}, ["x"], {"batch": 0}, "batch=0"),
        ({"a": NGRAM}, ["x"], {"allow_lossy": "a"}, "allow_lossy='a'"),
        ({"a": NGRAM}, ["x"], {"stop_strings": "END"}, "stop_strings='END': expected a list"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    verifier: Any, proposers: Any, prompts: Any, options: Any, said: str
) -> None:
    with pytest.raises(sd.UserError, match=said):
        sd.compare(verifier, proposers, prompts, **options)


@pytest.mark.parametrize("given", ["zoo:verifier", None, 5])
def test_a_verifier_is_a_model_that_was_loaded(given: Any) -> None:
    said = f"verifier={given!r}: expected a model of sd.load"
    with pytest.raises(sd.UserError, match=re.escape(said)):
        sd.generate(given, NGRAM, ["x"])
    with pytest.raises(sd.UserError, match=re.escape(said)):
        sd.compare(given, {"a": NGRAM}, ["x"])


def test_a_verifier_does_not_draft_for_itself_in_one_cache(verifier: Any, tiny: Tiny) -> None:
    """Two roles of one cache wrote text that was nobody's."""
    sampled = {"sampling": sd.Sampling(0), "max_new_tokens": 6}
    with pytest.raises(sd.UserError, match="a cache of its own"):
        sd.generate(verifier, sd.DraftModel(verifier, sd.Chain(2)), ["def add("], **sampled)
    twin = sd.DraftModel(sd.load(tiny.verifier), sd.Chain(2))
    (ours,) = sd.generate(verifier, twin, ["def add("], **sampled)
    (plain,) = sd.generate(verifier, sd.NoProposer(), ["def add("], **sampled)
    assert ours.output_ids == plain.output_ids


def test_what_fails_before_anything_is_there_is_raised(verifier: Any) -> None:
    class Broken(specdec.NGram):
        def propose(self, contexts: Any) -> Any:
            raise sd.UserError("boom")

    with pytest.raises(sd.UserError, match="boom"):
        sd.compare(verifier, {"a": Broken(2)}, ["def add("], max_new_tokens=4)
