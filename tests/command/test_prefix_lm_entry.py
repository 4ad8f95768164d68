"""`attention=prefix_lm` on the command line: every command heeds it, or says why not in a line."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from specdec.results.run_dir import read_traces
from tests.command.test_check_entry import decode as decode_many
from tests.support.complaints import assert_one_line
from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")

PREFIX = "verifier.attention=prefix_lm"


def decode(cli: CommandLine, tiny: Tiny, run: str, *options: str) -> list[tuple[int, ...]]:
    ended = cli("decode", *tiny.options(run, *options))
    assert ended.status == 0, ended.err
    return [trace.output_ids for trace in read_traces(Path(run))]


def test_all_proposers_write_the_text_of_the_mask(cli: CommandLine, tiny: Tiny) -> None:
    expected = decode(cli, tiny, "none", PREFIX)
    assert decode(cli, tiny, "causal") != expected
    for proposer in ("ngram", "draft_model"):
        assert decode(cli, tiny, proposer, PREFIX, f"proposer={proposer}") == expected
    both = ("attention=prefix_lm", "proposer=draft_model", "batch=3")
    assert decode(cli, tiny, "both", *both) == expected
    assert decode(cli, tiny, "uncached", PREFIX, "verifier.cache=none") == expected
    known = json.loads(Path("none/provenance.json").read_text())
    assert known["attention"] == "prefix_lm by sdpa"


def test_it_is_another_run(cli: CommandLine, tiny: Tiny) -> None:
    decode(cli, tiny, "run", PREFIX)
    ended = cli("decode", *tiny.options("run"))
    assert_one_line(ended, ["run"])


def test_recordings_are_replayed(cli: CommandLine, tiny: Tiny) -> None:
    arm = "proposer=draft_model tree.gamma=2"
    decode(cli, tiny, "run", PREFIX, *arm.split())
    ended = cli("record", *tiny.options("recording", PREFIX))
    assert ended.status == 0, ended.err
    given = (f"options=['draft.path={tiny.draft}']", "output=replayed", "grid.proposer=[]")
    ended = cli("replay", "recording=recording", f"arms=['{arm}']", *given)
    assert ended.status == 0, ended.err
    tau = json.loads(Path("run/summary.json").read_text())["block_efficiency"]["value"]
    found: Any = pd.read_csv("replayed/summary.csv")
    assert list(found["block_efficiency"]) == pytest.approx([tau], abs=1e-9)


def test_runs_are_checked_under_the_mask(cli: CommandLine, tiny: Tiny) -> None:
    decode_many(cli, tiny, "run", PREFIX, "proposer=draft_model")
    ended = cli("check", "run=run")
    assert ended.status == 0, ended.err + ended.out


SMALL = (
    *("train=medusa", "train.num_heads=2", "train.own_vocabulary_head=false", "max_steps=1"),
    *("data.max_length=16", "data.eval_samples=2", "trainer.per_device_train_batch_size=2"),
    "tree.gamma=2",
)


@pytest.mark.thorough
def test_heads_are_trained_and_decode(cli: CommandLine, tiny: Tiny) -> None:
    data = (f"verifier.path={tiny.verifier}", f"data.path={tiny.text}")
    ended = cli("train", *SMALL, *data, f"data.held_out_path={tiny.text}", PREFIX, "output=heads")
    assert ended.status == 0, ended.err
    medusa = ("proposer=medusa", "proposer.path=heads", "tree.gamma=2")
    assert decode(cli, tiny, "run", PREFIX, *medusa) == decode(cli, tiny, "none", PREFIX)
    assert_one_line(cli("decode", *tiny.options("other", *medusa)), ["another verifier"])


def test_calibration_reads_under_the_mask(cli: CommandLine, tiny: Tiny) -> None:
    models = [f"verifier.path={tiny.verifier}", f"draft.path={tiny.draft}", PREFIX]
    text = [f"data.path={tiny.text}", "data.max_length=24", "output=tree.json"]
    ended = cli("calibrate", *models, *text, "num_nodes=4")
    assert ended.status == 0, ended.err


def test_a_language_model_is_trained_and_decoded_with(cli: CommandLine, tiny: Tiny) -> None:
    small = ["train.hidden_size=16", "train.intermediate_size=32", "train.num_hidden_layers=2"]
    small += ["train.num_attention_heads=2", "train.block_length=16", "max_steps=2"]
    data = [f"data.path={tiny.text}", f"data.held_out_path={tiny.text}"]
    data += [f"train.tokenizer_path={tiny.verifier}", "output=lm"]
    ended = cli("train", "train=lm", "attention=prefix_lm", *small, *data)
    assert ended.status == 0, ended.err
    again = cli("train", "train=lm", *small, *data)
    assert_one_line(again, ["attention"])
    decode(cli, tiny, "run", "verifier.path=lm", PREFIX, "proposer=ngram")


@pytest.mark.parametrize(
    ("command", "options", "parts"),
    [
        ("decode", ["cache=clear", "cache.max_tokens=40"], ["prefix_lm", "cells of a prompt"]),
        ("decode", ["cache=sliding_window"], ["prefix_lm", "cells of a prompt"]),
        ("train", ["joint=true"], ["verifier.attention", "joint=true"]),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    cli: CommandLine, tiny: Tiny, command: str, options: list[str], parts: list[str]
) -> None:
    given = tiny.options("run") if command == "decode" else [f"verifier.path={tiny.verifier}"]
    data = [] if command == "decode" else [f"data.path={tiny.text}", "output=heads"]
    assert_one_line(cli(command, *given, *data, PREFIX, *options), parts)
