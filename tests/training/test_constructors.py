"""A constructor takes options; the work is `prepare`'s, which a trainer calls."""

import builtins
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling
from specdec.lm.hf import HFCausalLM
from specdec.training.chained import ChainedTraining
from specdec.training.data.distill import Distill
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.draft_model import DraftModelTraining
from specdec.training.expected_acceptance import HeldOut
from specdec.training.joint import Joint
from specdec.training.joint_losses import JointLosses
from specdec.training.lm import LanguageModeling
from specdec.training.loss.expected_accepted import ExpectedAccepted
from specdec.training.loss.kl import KL
from specdec.training.medusa import MedusaTraining
from specdec.training.objective import Objective
from specdec.tree.chain import Chain
from tests.support.building import prepared
from tests.support.running import Tiny

NOWHERE = "nowhere.jsonl"
K = 2


def states(verifier: HFCausalLM, **more: Any) -> VerifierStates:
    options = {"cache_path": "no_cache", "distill": Distill("no_answers.jsonl"), **more}
    return VerifierStates(verifier, NOWHERE, NOWHERE, **options)


def acceptance(depth: int = K) -> HeldOut:
    return HeldOut(Chain(depth), Sampling(0.0), prompts=NOWHERE)


def medusa(verifier: HFCausalLM, depth: int = K, **options: Any) -> MedusaTraining:
    options = {"num_heads": K, **options}
    return MedusaTraining(states(verifier), KL(), acceptance(depth), **options)


def chained(verifier: HFCausalLM, **options: Any) -> ChainedTraining:
    return ChainedTraining(states(verifier), KL(), acceptance(), num_heads=K, **options)


def draft(verifier: HFCausalLM, **options: Any) -> DraftModelTraining:
    return DraftModelTraining(states(verifier), KL(), acceptance(), **options)


def lm(_: HFCausalLM, **options: Any) -> LanguageModeling:
    return LanguageModeling(NOWHERE, NOWHERE, **options)


MADE: dict[str, Callable[[HFCausalLM], Objective]] = {
    "medusa": medusa,
    "chained": lambda verifier: chained(verifier, prefix_attention=True),
    "draft": draft,
    "draft, loaded": lambda verifier: draft(verifier, init_path="no_model"),
    "lm": lm,
    "lm, continued": lambda verifier: lm(verifier, init_path="no_model"),
    "joint": lambda verifier: Joint(medusa(verifier)),
}


def refused(*arguments: object, **options: object) -> None:
    raise AssertionError(f"a constructor works: {arguments} {options}")


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_a_constructor_touches_no_model_and_no_file(
    made: Callable[[HFCausalLM], Objective], verifier: HFCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(verifier)  # what is imported late is there from now on
    random = torch.random.get_rng_state()
    with monkeypatch.context() as patch:
        patch.setattr(verifier.model.base_model, "forward", refused)
        patch.setattr(torch.nn.Module, "load_state_dict", refused)
        for module in (builtins, io):
            patch.setattr(module, "open", refused)
        for name in ("open", "mkdir", "scandir", "listdir"):
            patch.setattr(os, name, refused)
        objective = made(verifier)
    assert torch.equal(torch.random.get_rng_state(), random)
    with pytest.raises(UserError, match=r"nowhere|no_model"):  # and the work does
        objective.prepare()


BAD: list[tuple[str, Callable[[HFCausalLM], Any]]] = [
    (r"num_heads=0: expected an integer >= 1", lambda of: medusa(of, num_heads=0)),
    (r"num_layers=-1: expected an integer >= 0", lambda of: medusa(of, num_layers=-1)),
    (r"decay=2: ", lambda of: medusa(of, decay=2)),
    (r"share=0: ", lambda of: medusa(of, share=0)),
    (r"tree", lambda of: medusa(of, depth=K + 1)),
    (r"link='tokens': expected one of", lambda of: chained(of, link="tokens")),
    (
        r"num_attention_heads=7: ",
        lambda of: chained(of, prefix_attention=True, num_attention_heads=7),
    ),
    (r"hidden_size=0: ", lambda of: draft(of, hidden_size=0)),
    (r"revision='v1': ", lambda of: draft(of, revision="v1")),
    (r"block_length=9999: ", lambda of: lm(of, block_length=9999)),
    (r"tokenizer_path='b': ", lambda of: lm(of, init_path="a", tokenizer_path="b")),
    (r"lora_rank=0: ", lambda of: Joint(medusa(of), lora_rank=0)),
    (r"seed=-1: ", lambda of: Joint(medusa(of), seed=-1)),
    (r"max_length=1: ", lambda of: states(of, max_length=1)),
]


@pytest.mark.parametrize(("said", "made"), BAD, ids=[said for said, _ in BAD])
def test_bad_options_are_refused_before_any_work(
    said: str, made: Callable[[HFCausalLM], Any], verifier: HFCausalLM
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        made(verifier)
    assert "\n" not in str(caught.value)


def test_a_loss_that_needs_all_positions_is_refused_a_share(verifier: HFCausalLM) -> None:
    with pytest.raises(UserError, match=r"share=0\.5: expected 1 with loss=ExpectedAccepted"):
        MedusaTraining(states(verifier), ExpectedAccepted(), acceptance(), num_heads=K, share=0.5)


def test_the_second_time_there_is_nothing_to_prepare(verifier: HFCausalLM, tiny: Tiny) -> None:
    data = VerifierStates(verifier, str(tiny.text), str(tiny.text), max_length=24)
    one = prepared(MedusaTraining(data, KL(), HeldOut(Chain(K), Sampling(0.0)), num_heads=K))
    module, batch = one.module, one.batch(0, 2)
    one.prepare()
    assert one.module is module
    assert torch.equal(one.batch(0, 2).token_ids, batch.token_ids)


def test_forward_swaps_no_verifier(verifier: HFCausalLM, tiny: Tiny) -> None:
    """Whose embeddings and vocabulary heads read is an argument, not a state of the module."""
    data = VerifierStates(verifier, str(tiny.text), str(tiny.text), max_length=24)
    heads = MedusaTraining(data, KL(), HeldOut(Chain(K), Sampling(0.0)), num_heads=K)
    one = prepared(Joint(heads, method="full"))
    assert isinstance(one.module, JointLosses)
    batch = one.batch(0, 2)
    before = [dict(vars(part)) for part in one.module.modules()]
    for heads_only in (True, False):
        one.module(batch.token_ids, batch.counted, data.hidden(batch), heads_only)
    after = [dict(vars(part)) for part in one.module.modules()]
    assert before == after
    assert heads.states is data, "and the training of the heads stays as it was"


def test_nothing_is_read_before_a_training_begins(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "one"}\n')
    samples = HeldOut(Chain(2), Sampling(0.0), prompts=str(tmp_path / "one.jsonl"))
    (tmp_path / "one.jsonl").unlink()
    with pytest.raises(UserError, match=r"evaluation\.prompts"):
        samples.prepare()
