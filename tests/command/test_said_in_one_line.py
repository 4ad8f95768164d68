"""What is mistyped, broken or installed wrongly is said in one line, before hours of work."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from specdec.zoo import ZOO_FOLDER
from tests.support.complaints import assert_one_line
from tests.support.faults import files_of_at_most

if TYPE_CHECKING:
    from tests.support.running import CommandLine, Ended, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong in itself is refused before a model is loaded."""

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded first")

    monkeypatch.setattr("specdec.lm.load.HFCausalLM", loaded)


# --- Hydra's grammar ---


AWKWARD = [
    *("my file=1.jsonl", "a=1.jsonl", "a#1.jsonl", "f\u00fcr.jsonl", "a[1].jsonl", "a(1.jsonl"),
    *("a'1.jsonl", 'a"1.jsonl', "{a}.jsonl", "a;b.jsonl", "'a#\".jsonl"),
]


@pytest.mark.parametrize("name", AWKWARD)
def test_the_form_that_is_suggested_works(tiny: Tiny, cli: CommandLine, name: str) -> None:
    """As somebody would copy it into a shell."""
    Path(name).write_text(tiny.prompts.read_text())
    option = f"prompts.path={name}"
    ended = cli("decode", *tiny.options("run", option, "prompts.limit=1"))
    assert_one_line(ended, [option, "this value wants quotes"])
    suggested = shlex.split(ended.err.split("wants quotes, ")[1])
    assert len(suggested) == 1, ended.err
    ended = cli("decode", *tiny.options("run", *suggested, "prompts.limit=1"))
    assert ended.status == 0, ended.err


def test_a_comma_is_for_sweeps_or_wants_quotes(tiny: Tiny, cli: CommandLine) -> None:
    Path("a,b.jsonl").write_text(tiny.prompts.read_text())
    ended = cli("decode", *tiny.options("run", "prompts.path=a,b.jsonl"))
    assert_one_line(ended, ["prompts.path=a,b.jsonl", "-m"])
    (suggested,) = shlex.split(ended.err.split("wants quotes, ")[1].split(";")[0])
    ended = cli("decode", *tiny.options("run", suggested, "prompts.limit=1"))
    assert ended.status == 0, ended.err


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["++max_new_token=3"], ["++max_new_token", "did you mean max_new_tokens?"]),
        (["+tree.gama=3"], ["tree", "gama"]),
        (["+nothing.at.all=3"], ["nothing.at.all", "no such option"]),
        (["+seed=3"], ["seed", "there is such an option"]),
        (["~dtype"], ["~dtype", "cannot be left out"]),
        (["hydra.job.chdir=true"], ["hydra.job.chdir", "expected false"]),
        (["output="], ["output=DIR"]),
        (["output=null"], ["output=DIR"]),
        (["prompts.path="], ["prompts.path=''"]),
        (["prompts.path=\udcff.jsonl"], ["not UTF-8"]),
        (["--config-dir", "nowhere"], ["--config-dir=nowhere", "no such folder"]),
        (["--config-name", "nowhere"], ["nowhere"]),
        (["-m", "sampling.temperature=interval(0,1)"], ["interval(0,1)", "a list of them"]),
        (["seed=range(0,2)"], ["seed=range(0,2)", "multirun"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.usefixtures("unloaded")
def test_options_that_nothing_reads(
    tiny: Tiny, cli: CommandLine, options: Sequence[str], names: Sequence[str]
) -> None:
    assert_one_line(cli("decode", *tiny.options("run"), *options), names)
    assert not list(Path().rglob("status.json"))


@pytest.mark.usefixtures("unloaded")
def test_options_of_arms_that_nothing_reads(tiny: Tiny, cli: CommandLine) -> None:
    arms = 'arms=["proposer=none","proposer=ngram ++max_new_token=3"]'
    ended = cli("compare", *tiny.options("run", arms))
    assert_one_line(ended, ["++max_new_token=3", "did you mean max_new_tokens?"])


def test_options_that_are_there_may_be_forced(tiny: Tiny, cli: CommandLine) -> None:
    options = tiny.options("run", "++prompts.limit=1", "++max_new_tokens=3", "proposer=ngram")
    ended = cli("decode", *options, "++proposer.max_ngram=2")
    assert ended.status == 0, ended.err
    assert '"max_ngram"' not in ended.err


def test_a_glob_chooses_files_as_a_list_does(tiny: Tiny, cli: CommandLine) -> None:
    options = ["-m", *tiny.options("sweep", "proposer=draft_model")]
    by_glob = cli("decode", *options, "tree=glob([ch*,fi*])", "--dry-run")
    by_list = cli("decode", *options, "tree=chain,filtered", "--dry-run")
    assert (by_glob.status, by_glob.out) == (0, by_list.out)
    assert "2 runs from 2 combinations" in by_glob.out


def test_a_folder_that_was_deleted_is_named(
    tiny: Tiny, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> str:
        raise FileNotFoundError(2, "No such file or directory")

    with monkeypatch.context() as patch:
        patch.setattr("os.getcwd", gone)
        assert_one_line(cli("decode", *tiny.options("run")), ["the folder that you are in"])


# --- Plug-ins ---


MODULES = {
    "fine": """
from specdec.proposer.ngram import NGram
from specdec.tree.chain import Chain
from specdec.verification.match import Match
class Fine(NGram): pass
class Nothing: pass
class NoUpdate(NGram):
    update = None
class OwnDraw(NGram):
    draw = "single"
class NoParents(Chain):
    parents = None
class NoLaw(Match):
    lossless_for = None
class Buggy(NGram):
    def __init__(self, gamma, max_ngram): raise KeyError("our own bug")
""",
    "half": "def half(:\n",
    "fails": "raise RuntimeError('at import\\nand more')\n",
}
NGRAM = "gamma: 2\nmax_ngram: 3\n"
PLUG_INS = [
    ("proposer", "nolab.Mine", NGRAM, ["nolab.Mine", "cannot be imported", "No module named"]),
    (
        "proposer",
        "fine.Mine",
        NGRAM,
        ["fine.Mine", "cannot be imported", "no attribute 'Mine'"],
    ),
    ("proposer", "half.Mine", NGRAM, ["half.Mine", "SyntaxError"]),
    ("proposer", "fails.Mine", NGRAM, ["fails.Mine", "RuntimeError: at import and more"]),
    ("proposer", "", NGRAM, ["proposer._target_", "expected a class"]),
    ("proposer", "fine.Nothing", "", ["fine.Nothing", "no `open`"]),
    ("proposer", "fine.NoUpdate", NGRAM, ["fine.NoUpdate", "update"]),
    ("proposer", "fine.OwnDraw", NGRAM, ["fine.OwnDraw.draw='single'", "a Draw"]),
    ("proposer", "fine.Fine", "gama: 2\n", ["fine.Fine", "gama"]),
    ("tree", "fine.NoParents", "gamma: 2\n", ["fine.NoParents.parents=None", "a sequence"]),
    ("tree", "nolab.Mine", "gamma: 2\n", ["tree._target_='nolab.Mine'", "cannot be imported"]),
    ("verification", "fine.NoLaw", "", ["fine.NoLaw.lossless_for=None", "a frozenset of Draw"]),
]


@pytest.fixture
def plug_ins(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's own modules, on the path."""
    Path("lib").mkdir()
    for name, text in MODULES.items():
        Path(f"lib/{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(Path("lib").resolve()))


def configured(group: str, target: str, options: str) -> list[str]:
    """Write the file of a plug-in; returns how it is chosen."""
    Path("mine", group).mkdir(parents=True)
    node = f"_target_: {target}\n{options}" if target else options
    if group == "verification":
        node = f"rule: {{_target_: {target}}}\nallow_lossy: false\n"
    Path("mine", group, "mine.yaml").write_text(node)
    return ["--config-dir", "mine", f"{group}=mine"]


@pytest.mark.usefixtures("plug_ins", "unloaded")
@pytest.mark.parametrize(
    ("group", "target", "options", "names"), PLUG_INS, ids=[each[1] for each in PLUG_INS]
)
def test_a_plug_in_that_is_none_is_named(
    tiny: Tiny, cli: CommandLine, group: str, target: str, options: str, names: Sequence[str]
) -> None:
    more = configured(group, target, options)
    if group == "tree":
        more.append("proposer=draft_model")
    assert_one_line(cli("decode", *tiny.options("run"), *more), names)


@pytest.mark.usefixtures("plug_ins")
def test_a_plug_in_that_is_one_runs(tiny: Tiny, cli: CommandLine) -> None:
    more = configured("proposer", "fine.Fine", NGRAM)
    assert cli("decode", *tiny.options("run", "prompts.limit=1"), *more).status == 0


@pytest.mark.usefixtures("plug_ins")
def test_a_bug_of_a_plug_in_keeps_its_traceback(tiny: Tiny, cli: CommandLine) -> None:
    more = configured("proposer", "fine.Buggy", NGRAM)
    with pytest.raises(Exception, match="our own bug"):
        cli("decode", *tiny.options("run"), *more)


def test_python_users_are_told_alike(tiny: Tiny) -> None:
    from specdec.core.errors import UserError
    from specdec.decoding.decoder import SpeculativeDecoder
    from specdec.lm.load import load
    from specdec.proposer.none import NoProposer
    from specdec.verification.match import Match

    verifier = load(str(tiny.verifier))
    lacking, lossy = NoProposer(), Match()
    vars(lacking).update(update=None)
    with pytest.raises(UserError, match=r"NoProposer\.update=None: expected a method"):
        SpeculativeDecoder(verifier, lacking, lossy)
    vars(lossy).update(lossless_for="all")
    with pytest.raises(UserError, match=r"Match\.lossless_for='all': expected a frozenset of Draw"):
        SpeculativeDecoder(verifier, NoProposer(), lossy)


# --- Heads and models ---


def copy_of(name: str) -> Path:
    shutil.copytree(ZOO_FOLDER / name, name)
    return Path(name)


def chosen(name: str, path: str) -> list[str]:
    return [f"proposer={name}", f"proposer.path={path}", "tree.gamma=2", "prompts.limit=1"]


FOREIGN = {"medusa_num_heads": 3, "base_model_name_or_path": "somebody/else", "model_type": "llama"}
CONFIGS = {
    "": "config.json is damaged",
    "no json": "config.json is damaged",
    "[]": "list in place of an object",
    json.dumps(FOREIGN): "another framework",
    "{}": "something else",
}


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (chosen("medusa", "zoo:chained"), "these are ChainedHeads; use proposer=chained"),
        (chosen("chained", "zoo:medusa"), "these are MedusaHeads; use proposer=medusa"),
        (chosen("medusa", "zoo:draft"), "this is a language model"),
        (["proposer=draft_model", "draft.path=zoo:medusa"], "these are MedusaHeads"),
        (["verifier.path=zoo:chained"], "these are ChainedHeads; use proposer=chained"),
    ],
)
def test_what_is_of_another_kind_is_called_by_its_name(
    cli: CommandLine, options: Sequence[str], said: str
) -> None:
    assert_one_line(cli("decode", "output=run", *options), [said])


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("content", CONFIGS)
def test_a_damaged_or_foreign_configuration_is_named(cli: CommandLine, content: str) -> None:
    (copy_of("medusa") / "config.json").write_text(content)
    ended = cli("decode", "output=run", *chosen("medusa", "medusa"))
    assert_one_line(ended, ["proposer.path='medusa'", CONFIGS[content]])


@pytest.mark.parametrize("size", [None, 0, 6, 1_000, 100_000])
def test_truncated_heads_are_named(cli: CommandLine, size: int | None) -> None:
    file = copy_of("medusa") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    if size is None:
        file.unlink()
    ended = cli("decode", "output=run", *chosen("medusa", "medusa"))
    assert_one_line(ended, ["proposer.path='medusa'", "no MedusaHeads"])


def test_a_folder_without_heads_is_named(cli: CommandLine) -> None:
    Path("empty").mkdir()
    ended = cli("decode", "output=run", *chosen("medusa", "empty"))
    assert_one_line(ended, ["proposer.path='empty'", "no config.json"])


# --- Disks, in every command ---


def train_options(tiny: Tiny, output: str) -> list[str]:
    data = [f"data.path={tiny.text}", f"data.held_out_path={tiny.text}", "data.max_length=16"]
    return [*data, f"verifier.path={tiny.verifier}", "train=medusa", "max_steps=1", output]


COMMANDS = ("decode", "compare", "record", "train", "cache", "distill", "costs", "calibrate")


def commands(tiny: Tiny) -> dict[str, tuple[str, list[str]]]:
    """Return what writes into `place`, by entry point and options."""
    run = tiny.options("place/run", "prompts.limit=1")
    text = ["place/file", f"verifier.path={tiny.verifier}", f"data.path={tiny.text}"]
    models = [option for option in run if not option.startswith("hydra")]
    return {
        "decode": ("decode", run),
        "compare": ("compare", [*run, 'arms=["proposer=none"]']),
        "record": ("record", [*run, "sampling.temperature=1"]),
        "train": ("train", train_options(tiny, "output=place/run")),
        "cache": ("train", [*train_options(tiny, "output=out"), "data.cache_path=place/run"]),
        "distill": ("train", [*train_options(tiny, "output=out"), "distill.path=place/a.jsonl"]),
        "costs": ("costs", [*models, "output=place/file", "proposers=[ngram]", "rounds=1"]),
        "calibrate": ("calibrate", [f"output={text[0]}", *text[1:], "proposer=draft_model"]),
    }


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("kind", ["full", "under a file"])
def test_every_command_says_what_it_cannot_write(
    tiny: Tiny, cli: CommandLine, name: str, kind: str
) -> None:
    entry_point, options = commands(tiny)[name]
    if kind == "under a file":
        Path("place").write_text("precious")
        assert_one_line(cli(entry_point, *options), ["place", "cannot be written"])
        assert Path("place").read_text() == "precious"
        return
    with files_of_at_most(0):
        ended: Ended = cli(entry_point, *options)
    assert_one_line(ended, ["cannot be written (File too large)"])
    litter = [path.name for path in Path("place").rglob(".*") if path.name != ".lock"]
    assert not litter, f"left behind: {litter}"


# --- Trackers ---


def test_a_tracker_that_wants_a_key_is_refused_beforehand(
    tiny: Tiny, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is an optional extra")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    said = ["tracker='wandb'", "WANDB_MODE=online", "wandb login"]
    assert_one_line(cli("decode", *tiny.options("run"), "tracker=wandb"), said)
    assert_one_line(cli("train", *train_options(tiny, "output=run"), "tracker=wandb"), said)


def test_a_tracker_that_cannot_be_imported_is_named(
    tiny: Tiny, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("lib/trackio").mkdir(parents=True)
    Path("lib/trackio/__init__.py").write_text("raise RuntimeError('numpy of another version')\n")
    monkeypatch.syspath_prepend(str(Path("lib").resolve()))
    ended = cli("decode", *tiny.options("run"), "tracker=trackio")
    assert_one_line(ended, ["tracker='trackio'", "RuntimeError: numpy of another version"])
