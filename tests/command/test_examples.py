"""Every command line of the help texts and of the documents goes as far as to its model."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import specdec
from specdec.lm.fingerprint import tokenizer_digest
from specdec.proposer.datastore import write_datastore
from tests.support.documents import PAGES, commands
from tests.support.families import tiny_model
from tests.support.running import CommandLine, Tiny
from tests.support.seq2seq import tiny_seq2seq
from tests.test_configs import CONFIGS, ENTRY_POINTS, examples

ZOO = Path(specdec.__file__).parent / "zoo"
# What the examples name, and what stands for it here; nothing is downloaded, and there is no GPU.
STANDS_FOR = {
    "Qwen/Qwen3-8B": "zoo:verifier",
    "Qwen/Qwen3-0.6B": "zoo:draft",
    "Qwen/Qwen3-32B": "zoo:verifier",
    "meta-llama/Llama-3.1-70B": "zoo:verifier",
    "meta-llama/Llama-3.2-1B": "zoo:draft",
    "Qwen/Qwen3.5-4B": "my_recurrent",
    "Qwen/Qwen3.5-0.8B": "my_recurrent",
    "LiquidAI/LFM2-1.2B": "my_recurrent",
    "google-t5/t5-small": "my_t5",
    "facebook/bart-base": "my_bart",
    "my_shallow_bart": "my_bart",
    "proposer.path=heads": "proposer.path=my_t5_heads",
    "articles.jsonl": "my.jsonl",
    "context=4096": "context=512",
    "cuda": "cpu",
    "bfloat16": "float32",
    "acceptance_vs_gamma": "acceptance_vs_gamma",
}


# What is said of runs as short as those here, once they were read.
TOO_FEW = {
    "check": ("tokens; expected at least",),
    "report": ("reference='draft_model, rejection'",),
    "decode": (
        "were drawn with this seed at temperature 1",  # as is what the others name
        "needs several processes",  # which torchrun starts
        "needs the package bitsandbytes",
    ),
}
# Those that load no model.
MODELLESS = ("check", "report", "describe")


class _Reached(BaseException):
    """A model would be loaded now: all before it is right."""


OF_HELP = [
    [entry_point, *arguments]
    for entry_point in ENTRY_POINTS
    for _, _, *arguments in examples(entry_point)
]
# Those with plug-ins of one's own are run, by test_docs.py.
OF_PAGES = [
    arguments for page in PAGES for arguments in commands(page) if "--config-dir" not in arguments
]
ALL = [list(arguments) for arguments in dict.fromkeys(map(tuple, [*OF_HELP, *OF_PAGES]))]


@pytest.fixture(scope="module")
def workplace(cli: CommandLine, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with all that the examples name: texts, models, heads, runs, a recording."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("text.txt", "more.txt"):
            shutil.copy(tiny.text, name)
        for name in ("text.jsonl", "more.jsonl"):
            Path(name).write_text('{"text": "def add(first, second): return first + second"}\n')
        shutil.copy(tiny.prompts, "my.jsonl")
        models = {"my_model": "verifier", "my_draft": "draft", "my_heads": "medusa"}
        models |= {"my_chained": "chained", "first_heads": "medusa", "my_prefix_lm": "verifier"}
        for name, model in models.items():
            Path(name).symlink_to(ZOO / model)
        _make_models()
        shutil.copytree(ZOO / "medusa", "both")
        Path("both/verifier").symlink_to(ZOO / "verifier")
        short = ["prompts.limit=1", "max_new_tokens=3", "sampling.temperature=1"]
        ended = cli("record", *short, "output=outputs/recording")
        assert ended.status == 0, ended.err
        for name in ("recording_T1", "qwen", "first_recording"):
            shutil.copytree("outputs/recording", f"outputs/{name}")
        for name in ("decode/RUN", "decode/A", "decode/B", "compare/RUN/arm"):
            shutil.copytree("outputs/recording/run", f"outputs/{name}")
        for name in ("acceptance_vs_gamma", "acceptance_vs_temperature", "verification_rules"):
            shutil.copytree("outputs/recording/run", f"outputs/{name}/run")
        for name in ("all_my_runs", "outputs/mine", "outputs/experts", "DIR"):
            shutil.copytree("outputs/recording/run", f"{name}/run")
        measured = ["positional=true", "sampling.temperature=1", "data.limit=1", "output=tree.json"]
        assert cli("calibrate", "data.path=text.txt", "data.max_length=64", *measured).status == 0
    return folder


def _make_models() -> None:
    """Save models of other kinds, and heads of one, which have the zoo's tokens."""
    tokenizer: Any = AutoTokenizer.from_pretrained(ZOO / "verifier")
    size = len(tokenizer)
    made = {"my_t5": tiny_seq2seq("t5", vocab_size=size)}
    long: dict[str, Any] = {"tie_word_embeddings": False, "max_position_embeddings": 1024}
    made["my_bart"] = tiny_seq2seq("bart", vocab_size=size, **long)
    for name, family in (("my_recurrent", "lfm2"), ("my_mixture", "mixtral")):
        made[name] = tiny_model(family, vocab_size=size, max_position_embeddings=1024)
    for name, model in made.items():
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
    shutil.copytree(ZOO / "medusa", "my_t5_heads")
    config = Path("my_t5_heads/config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": 32}))
    text = tokenizer("def add(first, second):\n    return first + second\n").input_ids
    write_datastore([text], Path("my_datastore"), tokenizer_digest(tokenizer))
    turns = [{"role": "user", "content": "add"}, {"role": "assistant", "content": "first + second"}]
    Path("pairs.jsonl").write_text(f"{json.dumps({'messages': turns})}\n" * 40)


def stand_ins(arguments: Sequence[str]) -> list[str]:
    """Put what is here in place of what the example names."""
    found = list(arguments)
    for name, here in STANDS_FOR.items():
        found = [text.replace(name, here) for text in found]
    return found


def remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("command", ALL, ids=lambda arguments: " ".join(arguments)[:90])
def test_an_example_is_configured_up_to_its_model(
    cli: CommandLine,
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
) -> None:
    shutil.copytree(workplace, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def reached(*arguments: object, **options: object) -> None:
        raise _Reached

    monkeypatch.setattr("specdec.lm.load._proven", reached)
    monkeypatch.setattr("specdec.training.lm.LanguageModeling.prepare", reached)
    entry_point, *arguments = stand_ins(command)
    if entry_point in ("record", "train"):  # into a new folder, as whoever copies the line
        for text in arguments:
            remove(Path(text.partition("output=")[2] or "nothing"))
    sweeps = "-m" in arguments or any(text.startswith("experiment=") for text in arguments)
    if sweeps and entry_point in ("decode", "train"):
        arguments += ["--dry-run", "sweep.most=3"]
    try:
        ended = cli(entry_point, *arguments)
    except _Reached:
        return
    told_why = any(each in ended.err for each in TOO_FEW.get(entry_point, ()))
    assert ended.status == 0 or told_why, ended.err
    assert told_why or entry_point in MODELLESS or "--dry-run" in arguments, "no model"


def test_the_examples_are_found() -> None:
    assert {arguments[0] for arguments in OF_HELP} == set(ENTRY_POINTS)
    assert len(OF_PAGES) > 50
    assert CONFIGS.is_dir()
