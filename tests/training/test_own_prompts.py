"""Acceptance on prompts of one's own: the verifier's answers to them, by category."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling
from specdec.core.values import FINAL
from specdec.lm.hf import HFCausalLM
from specdec.lm.load import load
from specdec.proposer.draft_model import DraftModel
from specdec.training.acceptance import Acceptance
from specdec.training.expected_acceptance import HeldOut
from specdec.training.objective import Batch
from specdec.tree.chain import Chain
from specdec.tree.dynamic import Dynamic
from tests.support.running import Tiny

TAU = "eval_block_efficiency"
ROWS = [
    {"question_id": f"{kind}-{n}", "category": kind, "prompt": f"{kind} number {n}:"}
    for kind in ("count", "sing")
    for n in range(7)
]


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(file)


@pytest.fixture
def draft(tiny: Tiny) -> HFCausalLM:
    return load(str(tiny.draft), vocabulary_of=str(tiny.verifier))


def nothing() -> Batch:
    """Return held-out samples that must not be looked at."""
    return Batch.of(torch.zeros((0, 0), dtype=torch.int64))


def measured(verifier: HFCausalLM, draft: HFCausalLM, acceptance: Acceptance) -> dict[str, float]:
    proposer = DraftModel(draft, acceptance.tree)
    return acceptance.measure(verifier, proposer, draft, nothing())


def test_the_answers_are_what_is_measured_along(
    verifier: HFCausalLM, draft: HFCausalLM, prompts: str
) -> None:
    acceptance = HeldOut(Chain(2), Sampling(1.0), max_new_tokens=9, prompts=prompts)
    texts = acceptance.texts(verifier, nothing(), (FINAL,))
    assert list(texts.categories) == [row["category"] for row in ROWS]
    assert texts.batch.counted.sum(dim=1).max() == 9
    assert verifier.tokenizer is not None
    for row, token_ids, counted in zip(
        ROWS, texts.batch.token_ids, texts.batch.counted, strict=True
    ):
        before = token_ids[: int(counted.int().argmax())]
        assert str(verifier.tokenizer.decode(before.tolist())).endswith(row["prompt"])
    found = measured(verifier, draft, acceptance)
    along = HeldOut(Chain(2), Sampling(1.0))
    proposer = DraftModel(draft, along.tree)
    measured_again = along.measure(verifier, proposer, draft, texts.batch)
    assert {name: found[name] for name in measured_again} == measured_again
    assert {name for name in found if "/" in name and name[-3:] not in ("low", "igh")} == {
        f"{TAU}/count",
        f"{TAU}/sing",
    }
    for kind in ("count", "sing"):
        kept = [row for row, name in enumerate(texts.categories) if name == kind]
        token_ids, counted = texts.batch.token_ids[kept], texts.batch.counted[kept]
        alone = along.measure(verifier, proposer, draft, Batch(token_ids, counted))
        assert found[f"{TAU}/{kind}"] == pytest.approx(alone[TAU], rel=1e-5)
        assert found[f"{TAU}/{kind}_low"] <= found[f"{TAU}/{kind}"] <= found[f"{TAU}/{kind}_high"]


def test_turns_of_a_prompt_are_one_unit(
    verifier: HFCausalLM, draft: HFCausalLM, tmp_path: Path
) -> None:
    file = tmp_path / "turns.jsonl"
    rows = [{"id": n, "turns": [f"say {n}", "and more"]} for n in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    acceptance = HeldOut(Chain(2), Sampling(1.0), max_new_tokens=5, prompts=str(file))
    texts = acceptance.texts(verifier, nothing(), (FINAL,))
    assert sorted(texts.prompt_ids) == sorted([f"{n}" for n in range(6)] * 2)
    assert set(measured(verifier, draft, acceptance)) == {TAU, f"{TAU}_low", f"{TAU}_high"}


def test_trees_that_grow_are_decoded_on_them(
    verifier: HFCausalLM, draft: HFCausalLM, prompts: str
) -> None:
    options = {"max_new_tokens": 9, "prompts": prompts, "prompts_limit": 10}
    found = measured(verifier, draft, HeldOut(Dynamic(4, 2), Sampling(0.0), **options))
    assert found[f"{TAU}/count"] >= 1
    assert f"{TAU}/count_low" in found
    assert f"{TAU}/sing_low" not in found  # of three prompts there is no interval


def test_only_a_verifier_that_changes_answers_again(verifier: HFCausalLM, prompts: str) -> None:
    acceptance = HeldOut(Chain(2), Sampling(0.0), max_new_tokens=9, prompts=prompts)
    verifier = HFCausalLM(deepcopy(verifier.model), verifier.tokenizer)  # others load it, too
    verifier.model.requires_grad_(False)
    first = acceptance.texts(verifier, nothing(), (FINAL,))
    assert acceptance.texts(verifier, nothing(), (FINAL,)) is first
    verifier.model.requires_grad_(True)
    with torch.no_grad():
        for weight in verifier.model.parameters():
            weight.copy_(weight.flip(0))
    again = acceptance.texts(verifier, nothing(), (FINAL,))
    assert not torch.equal(again.batch.token_ids, first.batch.token_ids)


def test_mistakes_are_told_under_their_own_names(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for prompts, limit, said in (
        (str(empty), None, "evaluation.prompts="),
        ("no.jsonl", None, "evaluation.prompts='no.jsonl'"),
        ("zoo:prompts", 0, "prompts_limit=0"),
    ):
        with pytest.raises(UserError, match=said):
            HeldOut(Chain(2), Sampling(0.0), prompts=prompts, prompts_limit=limit).prepare()
