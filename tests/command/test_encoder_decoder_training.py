"""Heads on encoder-decoder verifiers through the command line: trained, decoded, refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from specdec.results.run_dir import read_traces
from tests.support.complaints import assert_one_line
from tests.support.marking import thorough
from tests.support.running import VOCAB_SIZE, CommandLine, Tiny
from tests.support.seq2seq import tiny_seq2seq

pytestmark = pytest.mark.usefixtures("empty_folder")

QUESTIONS = ("def add(first, second):", "print(add(1, 2))", "return first + second", "first second")
MEDUSA = ("train=medusa", "train.num_heads=2", "train.own_vocabulary_head=false")
CHAINED = ("train=chained", "train.num_heads=2", "train.prefix_attention=true")
TRAINED = {"bart": (*MEDUSA, "max_steps=24"), "t5": (*CHAINED, "max_steps=12")}


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
        for text in QUESTIONS
    ]
    write(Path("pairs.jsonl"), talk)
    prompts = [{"id": f"{place}", "prompt": text} for place, text in enumerate(QUESTIONS)]
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
    text = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    return [line[name] for line in lines if name in line]


LONG = (
    *("trainer.learning_rate=1e-2", "trainer.per_device_train_batch_size=4"),
    *("trainer.logging_steps=4", "trainer.save_steps=12", "tree.gamma=2"),
)
ANSWERED = ("distill.path=answers.jsonl", "distill.temperature=0", "distill.max_new_tokens=20")


@pytest.mark.parametrize(
    "family", [each if each == "t5" else thorough(each) for each in sorted(TRAINED)]
)
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
    assert losses[-1] < 0.7 * losses[0]
    heads = (f"proposer={options[1].removeprefix('train=')}", "proposer.path=heads", "tree.gamma=2")
    assert decoded(cli, family, "run", *heads, "batch=3") == expected
    tau = json.loads(Path("run/summary.json").read_text())["block_efficiency"]["value"]
    assert tau > 1.3
    # Those texts are the verifier's own: along them nothing is approximate but bf16.
    assert logged("heads", "eval_block_efficiency")[-1] == pytest.approx(tau, abs=0.1)


@pytest.mark.thorough
def test_messages_are_sources_and_texts(cli: CommandLine, pairs: list[str]) -> None:
    """What is interrupted goes on, and another verifier's heads are not taken for one's own."""
    options = ["verifier.path=bart", *MEDUSA, *LONG, "max_steps=24", *pairs]
    ended = cli("train", *options, "trainer.max_hours=1e-9")
    assert "interrupted at step 1" in ended.out
    ended = cli("train", *options)
    assert ended.status == 0, ended.err
    assert "[[def add(first, second):" in ended.out
    losses = logged("heads", "loss")
    assert losses[-1] < losses[0]
    ended = cli("train", *options, "output=whole")
    assert logged("whole", "loss") == pytest.approx(losses, rel=1e-4)
    given = ["proposer=medusa", "proposer.path=heads", "tree.gamma=2", "verifier.path=t5"]
    ended = cli("decode", *given, "prompts.path=prompts.jsonl", "output=run")
    assert_one_line(ended, ["another verifier"])


def test_it_is_the_messages_that_are_read(cli: CommandLine, pairs: list[str]) -> None:
    options = ["verifier.path=bart", *MEDUSA, *LONG, "max_steps=24", *pairs, "max_steps=1"]
    assert cli("train", *options).status == 0
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    rows[0]["messages"][0]["content"] = "another source"
    write(Path("pairs.jsonl"), rows)
    assert_one_line(cli("train", *options), ["heads", "data.path"])


REFUSED = {
    "joint": (["joint=true"], ["joint=true", "has an encoder"]),
    "text": (["data.path=text.txt"], ["data.path='text.txt'", "plain text", "`messages`"]),
    "held out": (["data.held_out_path=text.txt"], ["data.held_out_path='text.txt'", "plain text"]),
    "template": (["data.template_options={a: 1}"], ["data.template_options", "no chat template"]),
    "strict": (["data.path=turns.jsonl", "data.strict=true"], ["several turns"]),
    "turns": (["data.path=turns.jsonl"], ["data.path=", "several turns"]),
    "start": (["data.path=written.jsonl"], ["data.path=", "does not end with 2"]),
    "distilled": (["data.path=text.txt", "distill.path=d.jsonl"], ["plain text"]),
    "swept": (["train=medusa,chained", "data.path=text.txt", "-m"], ["plain text"]),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_in_a_line(cli: CommandLine, pairs: list[str], name: str) -> None:
    more, parts = REFUSED[name]
    Path("text.txt").write_text("some words " * 20, encoding="utf-8")
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write(Path("turns.jsonl"), [{"messages": [*turn, *turn]}] * 3)
    write(Path("written.jsonl"), [{"token_ids": [5, 6, 7, 8], "num_prompt_tokens": 2}] * 3)
    given = ["verifier.path=bart", *MEDUSA, *LONG, "max_steps=24", *pairs]
    assert_one_line(cli("train", *given, *more), parts)


def test_models_are_not_trained(cli: CommandLine, pairs: list[str]) -> None:
    ended = cli("train", "train=draft_model", "verifier.path=bart", *pairs)
    assert_one_line(ended, ["train=draft_model", "has an encoder", "train=medusa"])
    ended = cli("train", "train=lm", "train.init_path=bart", *pairs)
    assert_one_line(ended, ["init_path='bart'", "encoder-decoder model"])
