"""Experts from the command line: counted in a run, shown in its report, priced, refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

from specdec.replaying.costs_file import read_costs
from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")
E, K = 8, 2


@pytest.fixture(scope="module")
def sparse(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random mixture with the tiny models' tokenizer."""
    folder = tmp_path_factory.mktemp("sparse")
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny.verifier)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        num_local_experts=E,
        num_experts_per_tok=K,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        MixtralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def steps_of(run: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, (run / "traces.jsonl").read_text(encoding="utf-8").splitlines())
    return [step for row in rows for step in row["steps"]]


def test_a_run_counts_and_its_report_shows(tiny: Tiny, sparse: Path, cli: CommandLine) -> None:
    common = ("proposer=ngram", f"verifier.path={sparse}", "keep_candidates=1")
    for name, more in [("plain", ()), ("counted", ("experts=true",))]:
        ended = cli("decode", *tiny.options(f"runs/{name}", *common, *more))
        assert ended.status == 0, ended.err
        assert ("experts" in ended.out) == bool(more)
    plain, counted = steps_of(Path("runs/plain")), steps_of(Path("runs/counted"))
    texts = [
        [json.loads(line)["output_ids"] for line in (Path("runs") / name / "traces.jsonl").open()]
        for name in ("plain", "counted")
    ]
    assert texts[0] == texts[1]
    assert all("experts" not in step for step in plain)
    for step in counted:
        assert step["forward_tokens"] == step["drafted"] + 1
        assert all(K <= number <= min(E, K * step["forward_tokens"]) for number in step["experts"])
    summary = json.loads(Path("runs/counted/summary.json").read_text())
    means = [sum(step["experts"]) / 2 for step in counted]
    assert summary["experts_touched"]["value"] == pytest.approx(sum(means) / len(means))
    view = json.loads(Path("runs/counted/tokens.jsonl").read_text().splitlines()[0])
    assert [len(token["experts"]) for token in view["tokens"][:-1]] == [2] * 11
    assert "experts" not in view["tokens"][-1], "nobody reads the last token"

    assert cli("report", "run=runs").status == 0
    page = Path("runs/report.html").read_text(encoding="utf-8")
    assert "experts per layer and step" in page


def test_the_same_folder_with_experts_is_another_run(
    tiny: Tiny, sparse: Path, cli: CommandLine
) -> None:
    options = tiny.options("run", f"verifier.path={sparse}")
    assert cli("decode", *options).status == 0
    ended = cli("decode", *options, "experts=true")
    assert ended.status == 2
    assert "holds a run of other options" in ended.err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("experts=true",), "experts=true: llama has no experts to count; expected false"),
        (("experts=3",), "experts=3: expected true or false"),
        (
            ("{sparse}", "experts=true", "runtime=compiled"),
            "experts=true: experts are counted by runtime=eager alone, not by 'compiled'",
        ),
        (
            ("{sparse}", "experts=true", "verifier.cache=none"),
            "experts=true: with verifier.cache=none a step may read more than its own tokens",
        ),
        (
            ("{sparse}", "experts=true", "cache=clear", "cache.max_tokens=64"),
            "experts=true: with cache=clear a step may read more than its own tokens",
        ),
    ],
)
def test_what_cannot_be_counted_is_one_line(
    tiny: Tiny, sparse: Path, cli: CommandLine, overrides: tuple[str, ...], said: str
) -> None:
    given = [each.replace("{sparse}", f"verifier.path={sparse}") for each in overrides]
    ended = cli("decode", *tiny.options("run", *given))
    assert (ended.status, ended.err) == (2, f"error: {said}\n")


def test_costs_say_how_many_experts_were_read(
    tiny: Tiny, sparse: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specdec.lab.costs.measurement.doubts", lambda *_: [])
    monkeypatch.setattr("specdec.lab.costs.copying.MEBIBYTES", {"cpu": 1})
    small = ("proposers=[ngram]", "tokens=[1,2,4,8]", "contexts=[16]", "repeats=1")
    models = (f"verifier.path={sparse}", f"prompts.path={tiny.prompts}", "max_new_tokens=24")
    ended = cli("costs", *models, *small, "output=costs.json")
    assert ended.status == 0, ended.err
    assert "distinct experts of a layer for n tokens, text that goes on: 1: 2.0, 2: " in ended.out
    points = read_costs(Path("costs.json")).forwards.points
    chains = {point.shape.num_tokens: point for point in points if not point.shape.branches}
    numbers = [chains[number].experts for number in (1, 2, 4, 8)]
    assert numbers[0] == K
    assert numbers == sorted(numbers, key=lambda each: each or 0)
    assert (numbers[-1] or 0) > 2 * K
    least = chains[1].num_bytes
    assert all(least < point.num_bytes for number, point in chains.items() if number > 1)


def test_a_trained_mixture_is_one_command(tiny: Tiny, cli: CommandLine) -> None:
    given = ("train=lm", f"data.path={tiny.text}", f"data.held_out_path={tiny.text}")
    sizes = ("hidden_size=16", "intermediate_size=16", "num_hidden_layers=1", "num_experts=4")
    more = ("num_attention_heads=2", "vocab_size=260", "block_length=16")
    options = [f"train.{each}" for each in (*sizes, *more)]
    ended = cli("train", *given, *options, "max_steps=2", "output=mixture")
    assert ended.status == 0, ended.err
    config = json.loads(Path("mixture/config.json").read_text())
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (4, 2)
    ended = cli("train", *given, "train.experts_per_token=2", "output=other")
    assert ended.status == 2
    assert ended.err == "error: train.experts_per_token=2: expected train.num_experts=8, too\n"


def test_arms_that_count_are_not_compared_with_others(cli: CommandLine) -> None:
    """Counting takes time, which would be read as the proposer's."""
    ended = cli(
        "compare", 'arms=["proposer=none","proposer=ngram experts=true"]', "prompts.limit=1"
    )
    assert ended.status == 2
    assert "the same experts in every arm" in ended.err
