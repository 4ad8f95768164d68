"""Decoding on a text, against decoding that happened to write it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from toy import RankedTree, full_context, markov, mixture, table_lm

from specdec.core.errors import Unfit
from specdec.core.protocols import Proposer
from specdec.core.sampling import Sampling
from specdec.core.trace import Trace
from specdec.core.values import Draw
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.hf import HFCausalLM
from specdec.lm.load import load
from specdec.metrics import Tally
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.ngram import NGram
from specdec.replay.jump import jump, require_jumps
from specdec.replay.texts import Text
from specdec.tree.dynamic import Dynamic
from specdec.tree.sparse import Sparse
from specdec.verification.rejection import Rejection

if TYPE_CHECKING:
    from conftest import Tiny

PROMPTS = [(0, 1, 2, 0, 1), (2,), (1, 1, 0)]
TARGET = markov(2, full_context(5, 1.5))
DRAFT = mixture(TARGET, full_context(6, 1.5), 0.5)
TREE = (-1, 0, 0, 1, 1, 2)


def texts_of(traces: list[Trace], prompts: list[tuple[int, ...]], budget: int) -> list[Text]:
    return [
        Text(t.prompt_id, "", 0, prompt, t.output_ids, (), t.finish_reason, budget)
        for t, prompt in zip(traces, prompts, strict=True)
    ]


def counted(traces: list[Trace]) -> dict[str, list[float]]:
    """Everything but seconds, and what the stand-in cannot know of p."""
    columns = Tally.of(traces).columns
    left_out = ("seconds", "overlap", "bound", "expected_accepted")
    return {n: list(c) for n, c in columns.items() if not n.endswith(left_out)}


PROPOSERS: dict[str, Proposer] = {
    "ngram": NGram(3),
    "ranked tree": RankedTree(TREE, DRAFT),
    "sparse": DraftModel(table_lm(DRAFT), Sparse([[0, 0], [1]])),
    "dynamic": DraftModel(table_lm(DRAFT), Dynamic(5, 3, 2)),
}


@pytest.mark.parametrize("ends", [frozenset(), frozenset({2})], ids=["endless", "ends"])
@pytest.mark.parametrize("name", PROPOSERS)
def test_point_masses_are_counted_as_in_decoding(name: str, ends: frozenset[int]) -> None:
    """Step by step the same, at temperature 1: the text decides."""
    proposer, stopping = PROPOSERS[name], Stopping(12, ends)
    decoder = SpeculativeDecoder(
        table_lm(TARGET), proposer, Rejection(), Sampling(), stopping, batch=2
    )
    decoded = decoder.decode([Request(f"{n}", prompt) for n, prompt in enumerate(PROMPTS)])
    texts = texts_of(decoded, PROMPTS, 12)
    found = jump(texts, proposer, table_lm(TARGET), Sampling(), ends, batch=2)
    assert [t.output_ids for t in sorted(found, key=lambda t: t.prompt_id)] == [
        t.output_ids for t in decoded
    ]
    assert counted(found) == counted(decoded)


def test_a_model_is_replayed_with_its_draft(tiny: Tiny) -> None:
    verifier, draft = load(str(tiny.verifier)), load(str(tiny.draft))
    prompts = [tuple(verifier.encode(text)) for text in ("def add(", "print(add(1, 2))\nprint(")]
    proposer = DraftModel(draft, Dynamic(6, 3, 3))
    decoded = decoded_texts(verifier, proposer, prompts)
    texts = texts_of(decoded, prompts, 20)
    found = jump(texts, proposer, verifier, Sampling(0.8), verifier.end_ids)
    assert counted(found) == counted(decoded)


def decoded_texts(
    verifier: HFCausalLM, proposer: Proposer, prompts: list[tuple[int, ...]]
) -> list[Trace]:
    decoder = SpeculativeDecoder(
        verifier, proposer, Rejection(), Sampling(0.8), Stopping(20, verifier.end_ids)
    )
    return decoder.decode([Request(f"{n}", prompt) for n, prompt in enumerate(prompts)])


def test_texts_that_a_stop_string_ended_are_not_continued() -> None:
    texts = [Text("a", "", 0, (0, 1), (2, 0, 1), (), "stop", 50)]
    (trace,) = jump(texts, NGram(2), table_lm(TARGET), Sampling(), frozenset())
    assert trace.output_ids == (2, 0, 1)


@pytest.mark.parametrize("draw", [Draw.SINGLE, Draw.IID, Draw.FILTERED])
def test_what_chance_decides_is_refused(draw: Draw) -> None:
    with pytest.raises(Unfit, match="verification=rejection"):
        require_jumps("rejection", draw)
    require_jumps("match", draw)
    require_jumps("rejection", Draw.DETERMINISTIC)
