"""Training with prompts that see themselves in both directions, held against masks by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import specdec as sd
from specdec.core.errors import UserError
from specdec.core.protocols import WholePrompts
from specdec.lm.hf import HFCausalLM
from specdec.lm.mask import PREFIX_LM
from specdec.lm.prefix_lm import PrefixLM
from specdec.training.data.last_hidden import last_hidden
from specdec.training.data.readings import readings
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.expected_acceptance import HeldOut
from specdec.training.lm import LanguageModeling
from specdec.training.lm_losses import text_loss
from specdec.training.loss.kl import KL
from specdec.training.medusa import MedusaTraining
from specdec.training.objective import Batch
from tests.lm.test_prefix_lm import reference
from tests.support.building import Build
from tests.support.families import random_ids, tiny_model
from tests.training.test_samples import SHORT, TALK, file, tokenizer
from tests.training.test_trainer import trainer

COUNTED = [
    [0, 0, 1, 1, 0, 0, 1, 0],  # two answers
    [1, 1, 1, 1, 1, 1, 1, 0],  # a text
    [0, 1, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 1, 1, 1, 1, 1],
]


def batch_of(counted: list[list[int]]) -> Batch:
    rows = [random_ids(len(row), seed) for seed, row in enumerate(counted)]
    return Batch(torch.tensor(rows), torch.tensor(counted).bool())


def runs(counted: list[int]) -> list[tuple[int, int]]:
    """Count the answers by hand: where each begins and ends."""
    edges = [at for at in range(1, len(counted)) if counted[at] != counted[at - 1]]
    edges = [*([0] if counted[0] else []), *edges, *([len(counted)] if counted[-1] else [])]
    return list(zip(edges[::2], edges[1::2], strict=True))


def test_each_answer_is_read_behind_a_prompt_of_its_own() -> None:
    found = list(readings(torch.tensor(COUNTED).bool()))
    assert len(found) == 2
    for row, counted in enumerate(COUNTED):
        owned = torch.stack([own[row] for _, own in found]).int()
        assert owned.sum(dim=0).tolist() == [1] * len(counted), "each token once"
        for number, (start, end) in enumerate(runs(counted)):
            assert found[number].num_prompt[row] == max(1, start)
            assert owned[number, max(0, start - 2) : end].all(), "with what speaks about it"


def test_samples_without_an_answer_are_read_all_the_same() -> None:
    ((num_prompt, own),) = readings(torch.zeros(1, 4).bool())
    assert num_prompt.tolist() == [1]
    assert own.all()


def test_the_loss_is_that_of_the_stock_model_with_the_mask() -> None:
    model, batch = tiny_model("llama"), batch_of(COUNTED)
    total = 0.0
    for ids, counted in zip(batch.token_ids.tolist(), COUNTED, strict=True):
        for start, end in runs(counted):
            log_p = reference(model, max(1, start), ids).logits[0].log_softmax(dim=-1)
            total -= sum(float(log_p[at - 1, ids[at]]) for at in range(max(1, start), end))
    with torch.no_grad():
        found = text_loss(model, batch, PREFIX_LM)
    assert float(found) == pytest.approx(total, rel=1e-5)


def test_states_are_those_of_the_stock_model_with_the_mask() -> None:
    model, batch = tiny_model("llama"), batch_of(COUNTED)
    found = last_hidden(PrefixLM(model), batch)
    for row, counted in enumerate(COUNTED):
        before = 0
        for start, end in runs(counted):
            ids = batch.token_ids[row].tolist()
            said = reference(model, max(1, start), ids, output_hidden_states=True)
            own = slice(before, end)
            torch.testing.assert_close(found[row, own], said.hidden_states[-1][0, own])
            before = end
    plain = last_hidden(HFCausalLM(model), batch)
    assert not torch.allclose(plain[0], found[0], atol=1e-2), "the mask matters"


def splits(batch: Batch) -> list[int]:
    starts = batch.counted.int().argmax(dim=1)
    length = batch.token_ids.shape[1]
    assert torch.equal(batch.counted, torch.arange(length) >= starts[:, None])
    return starts.tolist()


def test_blocks_are_split_at_random_places(build: Build) -> None:
    objective: LanguageModeling = build(attention=PREFIX_LM)
    drawn = [place for first in range(0, 400, 4) for place in splits(objective.batch(first, 4))]
    counts = torch.tensor(drawn).bincount(minlength=16)
    assert counts[0] == 0, "a prompt has a token"
    # 15 places, 400 draws: chi-square of 14 degrees of freedom, above 42.6 once in ten thousand.
    expected = 400 / 15
    assert float(((counts[1:] - expected) ** 2 / expected).sum()) < 42.6
    again: LanguageModeling = build(attention=PREFIX_LM)
    assert splits(again.batch(5, 3)) == drawn[5:8], "a function of the seed and the number"
    other: LanguageModeling = build(attention=PREFIX_LM, seed=1)
    assert splits(other.batch(0, 8)) != drawn[:8]
    causal: LanguageModeling = build()
    assert torch.equal(causal.batch(3, 2).token_ids, objective.batch(3, 2).token_ids)
    assert causal.batch(3, 2).counted.all()


def test_held_out_text_is_split_alike_whatever_the_seed(build: Build) -> None:
    objective: LanguageModeling = build(attention=PREFIX_LM)
    other: LanguageModeling = build(attention=PREFIX_LM, seed=1)
    other.module = objective.module
    with torch.no_grad():
        first, second = (each.evaluate(objective.module) for each in (objective, other))
    assert first == second


def test_it_learns(build: Build, tmp_path: Path) -> None:
    objective: LanguageModeling = build(attention=PREFIX_LM, num_hidden_layers=2)
    with torch.no_grad():
        before = objective.evaluate(objective.module.eval())["eval_loss"]
    evaluation = trainer(max_steps=40).fit(objective, tmp_path / "out")
    assert evaluation["eval_loss"] < 0.6 * before
    objective.save(objective.module, tmp_path / "model", {})
    assert "| attention | prefix_lm |" in (tmp_path / "model" / "README.md").read_text()
    assert isinstance(sd.load(tmp_path / "model", attention=PREFIX_LM), PrefixLM)


def test_answers_of_conversations_stand_behind_their_prompts(tmp_path: Path) -> None:
    data = file(tmp_path, *[{"messages": TALK}, {"messages": SHORT}] * 3)
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    objective = LanguageModeling(
        data,
        data,
        block_length=128,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tokenizer_path=str(tmp_path / "tokenizer"),
        attention=PREFIX_LM,
    )
    objective.prepare()
    assert objective.num_samples == 6
    assert objective.preview().startswith("[[<system>Be brief.")
    batch = objective.batch(0, 6)
    assert objective.num_tokens == int(batch.num_counted)
    said = {
        str(objective.tokenizer.decode(ids[marks].tolist()))
        for ids, marks in zip(batch.token_ids, batch.counted, strict=True)
    }
    assert said == {"No.</>\nBecause of its brackets.</>\n", "Yes.</>\n"}
    with torch.no_grad():
        assert objective.evaluate(objective.module)["eval_loss"] > 0


def test_experts_are_trained_without_their_balance(build: Build) -> None:
    experts = {"attention": PREFIX_LM, "num_experts": 4, "experts_per_token": 2}
    objective: LanguageModeling = build(**experts, router_aux_loss_coef=0.0)
    batch = objective.batch(0, 3)
    with torch.no_grad():
        assert float(objective.loss(objective.module, batch)) > 0
    with pytest.raises(UserError, match=r"^router_aux_loss_coef=.*: expected 0 with attention="):
        build(**experts)


def test_heads_are_trained_on_what_decoding_shows_them(tmp_path: Path, tiny: Any) -> None:
    """States in training are those of decoding, and acceptance is measured under the mask."""
    verifier = sd.load(tiny.verifier, attention=PREFIX_LM)
    assert verifier.tokenizer is not None
    answers = tmp_path / "answers.jsonl"
    rows = [{"token_ids": random_ids(n + 12, n, 280), "num_prompt_tokens": n} for n in (3, 9, 5)]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    states = VerifierStates(verifier, str(answers), str(answers), 32, 3)
    states.prepare()
    batch = states.held_out
    found = states.hidden(batch)
    verifier.open(3, 64)
    starts = batch.counted.int().argmax(dim=1).tolist()
    prompts = [ids[:n].tolist() for ids, n in zip(batch.token_ids, starts, strict=True)]
    assert isinstance(verifier, WholePrompts)
    shown = verifier.begin([0, 1, 2], prompts, ("final",))
    for row, said in enumerate(shown):
        torch.testing.assert_close(found[row, : starts[row] - 1], said["final"])
    heads = MedusaTraining(states, KL(), HeldOut(sd.Chain(2), sd.Sampling(0)), num_heads=2)
    heads.prepare()
    with torch.no_grad():
        assert heads.evaluate(heads.module)["eval_block_efficiency"] >= 1
    assert isinstance(states.placed(torch.device("cpu")), PrefixLM)


@pytest.mark.parametrize("attention", ["eager", "causal", 3])
def test_what_cannot_be_is_refused_in_a_line(attention: Any, build: Build) -> None:
    with pytest.raises(UserError, match=r"^attention=.*: expected prefix_lm, or null: causal"):
        build(attention=attention)


def test_a_model_with_windows_is_not_continued(build: Build, tmp_path: Path) -> None:
    model, own = tiny_model("mistral", vocab_size=280), build().tokenizer
    model.save_pretrained(tmp_path / "model")
    own.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"init_path=.*attention='prefix_lm': mistral has layers"):
        build(attention=PREFIX_LM, init_path=str(tmp_path / "model"))
