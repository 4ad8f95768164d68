"""A mixture of experts that is trained from scratch: balanced, resumed, saved, decoded with."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.load import load
from specdec.proposer.none import NoProposer
from specdec.training.balance import Balance
from specdec.training.lm import LanguageModeling
from specdec.training.objective import Batch
from specdec.verification.rejection import Rejection
from tests.support.building import Build
from tests.training.test_trainer import (
    assert_identical,
    evaluate,
    interrupt,
    losses,
    trainer,
    weights,
)

E, K = 4, 2
MIXTURE = {"num_experts": E, "num_hidden_layers": 2}


def balance(weight: float = 0.5) -> Balance:
    config = MixtralConfig(num_local_experts=E, num_experts_per_tok=K, router_aux_loss_coef=weight)
    found = Balance.of(config)
    assert found is not None
    return found


def logits(num_tokens: int = 30, seed: int = 0) -> Tensor:
    return torch.randn(num_tokens, E, generator=torch.Generator().manual_seed(seed))


def test_the_balance_of_a_layer_is_that_of_transformers_and_of_the_paper() -> None:
    found = float(balance().of_layer(logits()))
    assert found == pytest.approx(float(load_balancing_loss_func((logits(),), E, K)))
    probs = logits().softmax(-1).tolist()
    total = 0.0
    for expert in range(E):
        taken = [expert in sorted(range(E), key=lambda e: -row[e])[:K] for row in probs]
        total += sum(taken) / 30 * sum(row[expert] for row in probs) / 30
    assert found == pytest.approx(E * total)


def test_layers_do_not_make_up_for_each_other() -> None:
    """One layer wears out two experts, the other one the other two: joined, all seems well."""
    one, other = torch.tensor([[5.0, 5, 0, 0]] * 8), torch.tensor([[0.0, 0, 5, 5]] * 8)
    both: Any = (one, other)
    assert float(load_balancing_loss_func(both, E, K)) == pytest.approx(K)
    output = type("Output", (), {"router_logits": (one, other)})
    batch = Batch.of(torch.zeros(2, 4, dtype=torch.int64))
    found = float(balance(0.5).loss(output, batch))
    each = float(balance().of_layer(one))
    assert each > 1.9 * K
    assert found == pytest.approx(0.5 * 6 * each), "per counted token: 2 rows of 3 targets"


def test_a_mixture_is_as_large_as_was_asked_for(build: Build) -> None:
    config = build(**MIXTURE, experts_per_token=3).module.config
    assert (config.model_type, config.num_local_experts) == ("mixtral", E)
    assert (config.num_experts_per_tok, config.router_aux_loss_coef) == (3, 0.01)
    assert config.tie_word_embeddings
    config = build(**MIXTURE, router_aux_loss_coef=0.0).module.config
    assert (config.num_experts_per_tok, config.router_aux_loss_coef) == (K, 0.0)
    assert build().module.config.model_type == "llama"


def test_the_loss_of_training_has_the_balance_and_the_held_out_one_has_not(build: Build) -> None:
    balanced = build(**MIXTURE, router_aux_loss_coef=0.5)
    plain = build(**MIXTURE, router_aux_loss_coef=0.0)
    assert_identical(weights(balanced), weights(plain))
    batch = plain.batch(0, 3)
    with torch.no_grad():
        routed = plain.module(input_ids=batch.token_ids, output_router_logits=True).router_logits
        more = balanced.loss(balanced.module, batch) - plain.loss(plain.module, batch)
    expected = 0.5 * 3 * 15 * sum(float(balance().of_layer(each)) for each in routed) / 2
    assert float(more) == pytest.approx(expected, rel=1e-3)
    assert evaluate(balanced) == evaluate(plain)


def test_it_learns_and_its_experts_are_balanced(build: Build, tmp_path: Path) -> None:
    """The negative control: without the weight, training leaves the router less balanced."""
    found: dict[float, float] = {}
    for weight in (0.0, 0.3):
        objective = build(**MIXTURE, router_aux_loss_coef=weight)
        evaluation = trainer(max_steps=40).fit(objective, tmp_path / f"{weight}")
        assert evaluation["eval_loss"] < 0.6 * math.log(280)
        with torch.no_grad():
            ids = objective.batch(0, 16).token_ids
            output = objective.module(input_ids=ids, output_router_logits=True)
        layers = [float(balance().of_layer(each)) for each in output.router_logits]
        found[weight] = sum(layers) / len(layers)
    assert K - 1e-3 < found[0.3] < 1.1 * K
    assert found[0.3] < found[0.0]


def test_an_interrupted_training_ends_as_an_undisturbed_one(build: Build, tmp_path: Path) -> None:
    whole = build(**MIXTURE)
    expected = trainer().fit(whole, tmp_path / "whole")
    interrupt(lambda kind, **options: build(kind, **MIXTURE, **options), tmp_path / "resumed")
    resumed = build(**MIXTURE)
    assert trainer().fit(resumed, tmp_path / "resumed") == expected
    assert_identical(weights(resumed), weights(whole))
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")


def test_a_saved_mixture_decodes_with_its_experts_counted(build: Build, tmp_path: Path) -> None:
    trainer().fit(build(**MIXTURE), tmp_path / "out")
    lm = load(str(tmp_path / "out"))
    parts = lm, NoProposer(), Rejection(), Sampling(0.0), Stopping(5)
    (trace,) = SpeculativeDecoder(*parts, experts=True).decode([Request("a", [3, 4, 5])])
    assert [step.experts for step in trace.steps] == [(K, K)] * len(trace.steps)


def test_a_mixture_that_goes_on_keeps_its_experts_and_their_weight(
    build: Build, tmp_path: Path
) -> None:
    trainer().fit(build(**MIXTURE, router_aux_loss_coef=0.25), tmp_path / "out")
    again = build(init_path=str(tmp_path / "out"))
    assert again.module.config.num_local_experts == E
    batch = again.batch(0, 2)
    with torch.no_grad():
        output = again.module(input_ids=batch.token_ids, output_router_logits=True)
        targets = batch.token_ids[:, 1:].flatten()
        plain = nn.functional.cross_entropy(
            output.logits[:, :-1].flatten(0, 1), targets, reduction="sum"
        )
        more = float(again.loss(again.module, batch) - plain)
    layers = [float(balance().of_layer(each)) for each in output.router_logits]
    assert more == pytest.approx(0.25 * 2 * 15 * sum(layers) / 2, rel=1e-2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_experts": 1}, "num_experts=1: expected an integer >= 2"),
        ({"num_experts": "8"}, "num_experts='8': expected an integer >= 2"),
        (
            {"num_experts": 4, "experts_per_token": 5},
            "experts_per_token=5: expected at most num_ex",
        ),
        ({"num_experts": 4, "experts_per_token": 0}, "experts_per_token=0: expected an integer"),
        (
            {"num_experts": 4, "router_aux_loss_coef": -1},
            "router_aux_loss_coef=-1: expected a number >= 0",
        ),
        ({"experts_per_token": 2}, "experts_per_token=2: expected num_experts=8, too"),
        ({"router_aux_loss_coef": 0.1}, "router_aux_loss_coef=0.1: expected num_experts=8, too"),
        (
            {"num_experts": 4, "init_path": "zoo:verifier"},
            "num_experts=4: expected null: the model at init_path keeps its own",
        ),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        LanguageModeling("nowhere.txt", **options)
    assert str(error.value).startswith(said)
