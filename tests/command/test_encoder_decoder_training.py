"""Heads on encoder-decoder verifiers through the command line: trained, decoded, refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from specdec.results.run_dir import read_traces
from tests.support.complaints import assert_one_line
from tests.support.running import VOCAB_SIZE, CommandLine, Tiny
from tests.support.seq2seq import tiny_seq2seq

pytestmark = pytest.mark.usefixtures("empty_folder")

ASKED = ("def add(first, second):", "print(add(1, 2))", "return first + second", "first second")
MEDUSA = ("train=medusa", "train.num_heads=2", "train.own_vocabulary_head=false")
CHAINED = ("train=chained", "train.num_heads=2", "train.prefix_attention=true")
TRAINED = {"bart": MEDUSA, "t5": CHAINED}


@pytest.fixture
def pairs(tiny: Tiny) -> list[str]:
    """Save two kinds of verifiers, sources and texts; returns what all trainings here read."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny.verifier)
    for family in TRAINED:
        tied = {} if family == "t5" else {"tie_word_embeddings": False}
        tiny_seq2seq(family, vocab_size=VOCAB_SIZE, **tied).save_pretrained(family)
        tokenizer.save_pretrained(family)
    talk = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}
        for text in ASKED
    ]
    write(Path("pairs.jsonl"), talk)
    prompts = [{"id": f"{place}", "prompt": text} for place, text in enumerate(ASKED)]
    write(Path("prompts.jsonl"), prompts)
    return ["data.path=pairs.jsonl", "data.held_out_path=pairs.jsonl", "output=heads"]


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def decoded(cli: CommandLine, family: str, run: str, *options: str) -> list[tuple[int, ...]]:
    given = ["max_new_tokens=20", "ignore_eos=true", "prompts.path=prompts.jsonl", f"output={run}"]
    ended = cli("decode", f"verifier.path={family}", *given, *options)
    assert ended.status == 0, ended.err
    return [trace.output_ids for trace in read_traces(Path(run))]


def logged(folder: str, name: str) -> list[float]:
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


LONG = (
    *("max_steps=60", "trainer.learning_rate=1e-2", "trainer.per_device_train_batch_size=4"),
    *("trainer.logging_steps=5", "trainer.eval_steps=60", "trainer.save_steps=60", "tree.gamma=2"),
)
ANSWERED = ("distill.path=answers.jsonl", "distill.temperature=0", "distill.max_new_tokens=20")


@pytest.mark.parametrize("family", sorted(TRAINED))
def test_heads_learn_what_the_verifier_writes(
    cli: CommandLine, pairs: list[str], family: str
) -> None:
    options = [f"verifier.path={family}", *TRAINED[family], *LONG]
    ended = cli("train", *options, *pairs, *ANSWERED, "output=short", "max_steps=1")
    assert ended.status == 0, ended.err
    expected = decoded(cli, family, "none")
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    answers = [tuple(row["token_ids"][row["num_prompt_tokens"] :]) for row in rows if "id" in row]
    assert answers == [text[: len(own)] for text, own in zip(expected, answers, strict=True)]

    own = ["data.path=answers.jsonl", "data.held_out_path=answers.jsonl", "data.cache_path=states"]
    ended = cli("train", *options, *own, "output=heads")
    assert ended.status == 0, ended.err
    losses = logged("heads", "loss")
    assert losses[-1] < 0.5 * losses[0]
    heads = (f"proposer={options[1].removeprefix('train=')}", "proposer.path=heads", "tree.gamma=2")
    assert decoded(cli, family, "run", *heads, "batch=3") == expected
    tau = json.loads(Path("run/summary.json").read_text())["block_efficiency"]["value"]
    print(tau, logged("heads", "eval_block_efficiency"))
    assert tau > 1.3
