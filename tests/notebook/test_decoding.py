"""What a notebook calls: the same numbers as the commands, as values."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import specdec
from tests.support.running import CommandLine, Tiny

sd: Any = specdec  # whose types would refuse some of what is tried here


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
        ({"a": 1}, [], {}, "expected texts, or prompts"),
        ({"a": 1}, ["x"], {"reference": "b"}, "reference='b': expected one of a"),
        ({"a": 1}, ["x"], {"batch": 0}, "batch=0"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    verifier: Any, proposers: Any, prompts: Any, options: Any, said: str
) -> None:
    with pytest.raises(sd.UserError, match=said):
        sd.compare(verifier, proposers, prompts, **options)
