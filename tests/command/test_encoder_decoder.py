"""Encoder-decoder verifiers through the commands: decoded, recorded, replayed, refused."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from specdec.results.run_dir import read_traces
from tests.support.families import noisy_copy
from tests.support.running import VOCAB_SIZE, CommandLine, Tiny
from tests.support.seq2seq import generated, tiny_seq2seq

NEW = 12


@pytest.fixture
def folders(tiny: Tiny, tmp_path: Path) -> dict[str, Path]:
    """Save two kinds of verifiers and a draft of one."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny.verifier)
    bart = tiny_seq2seq("bart", vocab_size=VOCAB_SIZE, tie_word_embeddings=False)
    t5 = tiny_seq2seq("t5", vocab_size=VOCAB_SIZE)
    models = {"bart": bart, "draft": noisy_copy(bart, 0.05), "t5": t5}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    models["draft"].save_pretrained(tmp_path / "stranger")
    AutoTokenizer.from_pretrained(tiny.stranger).save_pretrained(tmp_path / "stranger")
    return {name: tmp_path / name for name in (*models, "stranger")}


def options(tiny: Tiny, folders: dict[str, Path], output: Path, *more: str) -> list[str]:
    paths = [f"verifier.path={folders['bart']}", f"draft.path={folders['draft']}"]
    return [*paths, f"prompts.path={tiny.prompts}", "max_new_tokens=12", f"output={output}", *more]


def test_decoded_recorded_and_replayed(
    cli: CommandLine, tiny: Tiny, folders: dict[str, Path], tmp_path: Path
) -> None:
    run, recording = tmp_path / "run", tmp_path / "recording"
    own = options(tiny, folders, run, "proposer=draft_model", "batch=3", "ignore_eos=true")
    ended = cli("decode", *own)
    assert ended.status == 0, ended.err
    assert "proven: tree forwards equal plain forwards" in ended.out
    model = tiny_seq2seq("bart", vocab_size=VOCAB_SIZE, tie_word_embeddings=False)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny.verifier)
    first = next(trace for trace in read_traces(run) if trace.prompt_id == "add")
    source = tokenizer("def add(first, second):")["input_ids"]
    assert list(first.output_ids) == generated(model, source, NEW)
    assert first.contexts[0] == len(source)

    ended = cli("record", *options(tiny, folders, recording, "ignore_eos=true"))
    assert ended.status == 0, ended.err
    ended = cli(
        "replay",
        f"recording={recording}",
        "grid.proposer=[draft_model,ngram]",
        "grid.gamma=[2]",
        f"options=['draft.path={folders['draft']}']",
        f"output={tmp_path / 'replay'}",
    )
    assert ended.status == 0, ended.err


REFUSED = {
    "tree": (["verifier.path={t5}", "tree=sampled"], "tree=sampled: ", "cannot read trees"),
    "draft": (["draft.path={llama}"], "draft.path=", "has no encoder"),
    "runtime": (["runtime=compiled"], "verifier.path=", "runtime=eager alone"),
    "cache": (["verifier.cache=none"], "verifier.path=", "not verifier.cache=none"),
    "policy": (["cache=clear", "cache.max_tokens=9"], "verifier.path=", "keeps all cells"),
    "source": (["verifier.max_length=9"], "", "tokens do not fit the 9 of the encoder"),
    "length": (["verifier.max_length=65"], "verifier.max_length=65", "at most 64"),
    "vocabulary": (["draft.path={stranger}"], "draft.path=", "its vocabulary of"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_in_a_line(
    cli: CommandLine, tiny: Tiny, folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    more, start, message = REFUSED[name]
    given = [each.format(**folders, llama=tiny.draft) for each in more]
    run = tmp_path / "run"
    ended = cli("decode", *options(tiny, folders, run, "proposer=draft_model", *given))
    assert ended.status == 2, ended.out
    (line,) = ended.err.splitlines()
    assert line.startswith(f"error: {start}"), line
    assert message in line, line


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("costs", [], "costs are those of decoders"),
        ("calibrate", ["proposer=draft_model"], "expected recording=DIR"),
    ],
)
def test_what_measures_decoders_alone_says_so(
    cli: CommandLine,
    tiny: Tiny,
    folders: dict[str, Path],
    tmp_path: Path,
    command: str,
    more: list[str],
    message: str,
) -> None:
    read = [] if command == "costs" else [f"data.path={tiny.text}"]
    output = f"output={tmp_path / 'found.json'}"
    ended = cli(command, f"verifier.path={folders['bart']}", output, *read, *more)
    assert ended.status == 2, ended.out
    assert message in ended.err
    assert len(ended.err.splitlines()) == 1
