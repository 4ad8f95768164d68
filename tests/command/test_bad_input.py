"""Bad input ends in one line that names the field, the value and what would be right.

Exit status 2, no traceback, and nothing of an earlier run is touched.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from tests.support.complaints import assert_complaint, assert_one_line
from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")

FINE = '{"prompt": "fine"}\n'
EARLIER = {
    "traces.jsonl": "{}\n",
    "status.json": '{"state": "complete"}\n',
    "none/traces.jsonl": "{}\n",
    "none/status.json": '{"state": "complete"}\n',
}


@dataclass(frozen=True)
class Mistake:
    """Overrides, what the one line must name, and the files that are needed."""

    name: str
    options: Sequence[str]
    names: Sequence[str]
    files: dict[str, str] = field(default_factory=dict[str, str])


UNKNOWN = [
    Mistake(
        "model", ["verifier.path=nobody/nothing"],
        ["verifier.path='nobody/nothing'", "a Hub id"],
    ),
    Mistake("folder", ["verifier.path=./nothing"], ["verifier.path='./nothing'", "folder"]),
    Mistake("zoo_model", ["verifier.path=zoo:other"], ["zoo:other", "zoo:verifier"]),
    Mistake(
        "draft", ["proposer=draft_model", "draft.path=nobody/nothing"],
        ["draft.path='nobody/nothing'"],
    ),
    Mistake(
        "prompts", ["prompts.path=nothing.jsonl"],
        ["prompts.path='nothing.jsonl'", "no such file", ".jsonl, .json or .txt"],
    ),
    Mistake(
        "recorded_run", ["proposer=recorded", "proposer.path=nothing"],
        ["proposer.path='nothing'", "traces.jsonl"],
    ),
    Mistake("no_recorded_run", ["proposer=recorded"], ["proposer.path=None", "run directory"]),
    Mistake("proposer", ["proposer=ngrm"], ["proposer", "ngrm", "ngram"]),
    Mistake("proposer_of_arm", ['arms=["proposer=ngrm"]'], ["proposer", "ngrm", "ngram"]),
    Mistake("experiment", ["experiment=dmeo"], ["experiment", "dmeo", "demo"]),
    Mistake("device", ["device=gpu"], ["device='gpu'", "cuda"]),
    Mistake("dtype", ["dtype=int8"], ["dtype='int8'", "float32"]),
    Mistake("attention", ["attention=fast"], ["attention", "fast", "sdpa"]),
    Mistake("runtime", ["runtime=fast"], ["runtime='fast'", "eager, compiled, cuda_graphs"]),
    Mistake("graphs", ["runtime=cuda_graphs"], ["runtime='cuda_graphs': a GPU replays them"]),
]  # fmt: skip
PROMPT_FILES = [
    Mistake(
        "broken_line", ["prompts.path=broken.jsonl"], ["broken.jsonl:2:", "JSON"],
        {"broken.jsonl": FINE + '{"prompt": "half\n'},
    ),
    Mistake(
        "empty_prompt", ["prompts.path=empty.jsonl"], ["empty.jsonl:2:", "empty"],
        {"empty.jsonl": FINE + '{"prompt": ""}\n'},
    ),
    Mistake("no_prompts", ["prompts.path=no.jsonl"], ["no.jsonl", "no prompts"], {"no.jsonl": ""}),
    Mistake(
        "prompt_longer_than_context", ["prompts.path=long.jsonl"], ["long", "tokens", "256"],
        {"long.jsonl": FINE + json.dumps({"id": "long", "prompt": "return " * 300}) + "\n"},
    ),
    Mistake(
        "no_template", ["prompts.chat_template=chat"], ["prompts.chat_template='chat'", "raw"]
    ),
]  # fmt: skip
OUT_OF_RANGE = [
    Mistake("temperature", ["sampling.temperature=-1"], ["sampling.temperature=-1", ">= 0"]),
    Mistake("temperature_nan", ["sampling.temperature=nan"], ["sampling.temperature=nan", ">= 0"]),
    Mistake("top_p_zero", ["sampling.top_p=0"], ["sampling.top_p=0", "(0, 1]"]),
    Mistake("top_p_above_one", ["sampling.top_p=1.5"], ["sampling.top_p=1.5", "1"]),
    Mistake("top_k", ["sampling.top_k=-1"], ["sampling.top_k=-1", ">= 0"]),
    Mistake("gamma", ["tree.gamma=0"], ["tree.gamma=0", ">= 1"]),
    Mistake(
        "gamma_of_arm", ['arms=["proposer=none", "proposer=ngram tree.gamma=0"]'],
        ["tree.gamma=0", ">= 1"],
    ),
    Mistake("max_new_tokens", ["max_new_tokens=0"], ["max_new_tokens=0", ">= 1"]),
    Mistake("batch", ["batch=0"], ["batch=0", ">= 1"]),
    Mistake("limit", ["prompts.limit=0"], ["prompts.limit=0", ">= 1"]),
    Mistake("seed", ["seed=-1"], ["seed=-1", ">= 0"]),
    Mistake("turn", ["turn=0"], ["turn=0", ">= 1"]),
    Mistake("no_arms", ["arms=[]"], ["arms=[]", "at least one"]),
    Mistake("arm_twice", ['arms=["proposer=none", "proposer=none"]'], ["arms", "proposer=none"]),
    Mistake(
        "draft_temperature", ["proposer=draft_model", "proposer.temperature=-1"],
        ["proposer.temperature=-1", ">= 0"],
    ),
]  # fmt: skip
WRONG_TYPES = [
    Mistake("temperature", ["sampling.temperature=warm"], ["sampling.temperature='warm'"]),
    Mistake("gamma", ["tree.gamma=2.5"], ["tree.gamma=2.5", "an integer"]),
    Mistake("batch", ["batch=true"], ["batch=True", "an integer"]),
    Mistake("path", ["verifier.path=5"], ["verifier.path=5", "a Hub id or a folder"]),
    Mistake("dtype", ["dtype=[float32]"], ["dtype=['float32']"]),
    # As a sequence of strings it would stop at every a, b or c, without a word.
    Mistake("stop_strings", ["stop_strings=abc"], ["stop_strings='abc'"]),
    Mistake("stop_number", ["stop_strings=5"], ["stop_strings=5"]),
    # Any text is true in Python, so a misspelt false would allow lossy rules.
    Mistake(
        "allow_lossy", ["verification.allow_lossy=flase"], ["verification.allow_lossy='flase'"]
    ),
    Mistake("arms_null", ["arms=null"], ["arms=None"]),
    # A bare string would be taken letter by letter.
    Mistake("arms_text", ["arms=ngram"], ["arms", "ngram"]),
]
DRAFT = "proposer=draft_model"
SAMPLED = [DRAFT, "tree=sampled", "tree.widths=[2,1]"]
OF_PAIRS = [
    Mistake(
        "rule_for_no_such_draw", [DRAFT, "verification=top_plus_one", "tree=filtered"],
        ["verification=top_plus_one", "filtered", "single, top_plus_one"],
    ),
    Mistake(
        "rule_for_chains", [*SAMPLED, "verification=block"],
        ["verification=block", "without_replacement", "single"],
    ),
    Mistake(
        "rule_without_q", ["proposer=ngram", "verification=kseq"],
        ["verification=kseq", "deterministic", "proposer would do"],
    ),
    Mistake(
        "rule_of_a_recording", ["proposer=recorded", "verification=block"],
        ["verification=block", "deterministic"],
    ),
    Mistake(
        "lossy", [DRAFT, "verification=typical"],
        ["verification=typical", "not lossless", "verification.allow_lossy=true"],
    ),
    Mistake(
        "copied_tree", ["proposer=ngram", "tree=dynamic"],
        ["tree=dynamic", "proposer=ngram copies one text", "tree=chain"],
    ),
    Mistake(
        "copied_filter", ["proposer=recorded", "tree=filtered"],
        ["tree=filtered", "proposer=recorded copies one text", "tree=chain"],
    ),
    Mistake(
        "copied_confidence", ["proposer=ngram", "tree.min_confidence=0.5"],
        ["tree.min_confidence=0.5", "knows no probabilities"],
    ),
    Mistake(
        "judge_for_no_such_draw", [*SAMPLED, "judges=[match,block]"],
        ["judges=block", "without_replacement", "single"],
    ),
    Mistake("judge", [DRAFT, "judges=[blok]"], ["verification", "blok", "block"]),
    Mistake("judge_text", [DRAFT, "judges=block"], ["judges='block'", "a list"]),
    Mistake("judge_number", [DRAFT, "judges=[1]"], ["judges=[1]", "a list"]),
    Mistake(
        "pair_of_arm", ['arms=["proposer=draft_model verification=kseq tree=sparse"]'],
        ["verification=kseq", "deterministic"],
    ),
]  # fmt: skip
MISTYPED = [
    Mistake("option", ["max_new_token=3"], ["max_new_token", "max_new_tokens"]),
    Mistake("nested", ["sampling.temprature=1"], ["sampling.temprature", "sampling.temperature"]),
    Mistake("without_node", ["gama=3"], ["gama", "did you mean tree.gamma?"]),
    Mistake(
        "of_another_tree",
        ["tree=sampled", "tree.gamma=3"],
        ["tree.gamma", "there are tree.widths, tree.draw"],
    ),
    Mistake("of_a_chosen_tree", ["tree=sampled", "tree.width=3"], ["did you mean tree.widths?"]),
    Mistake("model", ["verifier=Qwen/X"], ["verifier=Qwen/X", "verifier.path=MODEL"]),
    Mistake("unused_model", ["draft=Qwen/X"], ["draft=Qwen/X", "draft.path=MODEL"]),
    Mistake("no_sampling", ["sampling=null"], ["sampling=None", "sampling.temperature=0.7"]),
    Mistake("no_rule", ["verification.rule=null"], ["verification.rule=None"]),
    Mistake("no_tree", ["tree=null"], ["tree=null", "--help"]),
    Mistake("whole_node", ["prompts=my.jsonl"], ["prompts", "prompts.path"]),
    Mistake("path_of_a_judge", ["judges=[../tree/chain]"], ["judges=", "[block,traversal]"]),
    Mistake("several_arms", ["experiment=demo"], ["experiment=demo", "specdec-compare"]),
    Mistake("rank", ["proposer=draft_model", "tree=sparse", "tree.paths=[[0],[true]]"], ["True"]),
    Mistake("in_an_arm", ['arms=["proposer=ngram tree.gama=2"]'], ["tree.gama", "tree.gamma"]),
    Mistake("no_value", ["proposer"], ["'proposer'"]),
    Mistake("dashes", ["--temperature", "0.7"], ["--temperature"]),
]
OF_TRAINING = [
    Mistake("no_data", ["data.path=nothing.txt"], ["data.path='nothing.txt'", "no such file"]),
    Mistake("no_held_out", ["data.held_out_path=no.txt"], ["data.held_out_path='no.txt'"]),
    Mistake("steps", ["max_steps=0"], ["max_steps=0", ">= 1"]),
    Mistake("precision", ["trainer.mixed_precision=int8"], ["mixed_precision='int8'", "bf16"]),
    Mistake("option", ["max_step=3"], ["max_step", "max_steps"]),
    Mistake("train", ["train=llm"], ["train", "llm", "lm"]),
    Mistake("tokenizer", ["train.tokenizer_path=./nothing"], ["tokenizer_path='./nothing'"]),
    Mistake(
        "broken_line", ["data.path=broken.jsonl", "data.strict=true"], ["broken.jsonl:2:", "JSON"],
        {"broken.jsonl": '{"text": "fine"}\n{"text": "half\n'},
    ),
    Mistake(
        "no_text_field", ["data.path=other.jsonl"], ["other.jsonl:1:", "`text`"],
        {"other.jsonl": '{"content": "fine"}\n'},
    ),
    Mistake(
        "not_utf8", ["data.path=latin.txt"], ["latin.txt", "UTF-8"], {"latin.txt": "caf\udce9"}
    ),
    Mistake(
        "too_little", ["data.path=few.txt"], ["data.path", "too few"], {"few.txt": "too few"}
    ),
]  # fmt: skip


OF_COMPARE = [
    Mistake("proposer_outside", ["proposer=ngram"], ["proposer=ngram", "arms="]),
    Mistake("option_outside", ["proposer.max_ngram=2"], ["proposer.max_ngram", "arms="]),
    Mistake("dtypes", ['arms=["proposer=none","proposer=ngram dtype=bfloat16"]'], ["dtype"]),
    Mistake("prompts", ['arms=["proposer=none","proposer=ngram prompts.limit=1"]'], ["prompts"]),
    Mistake(
        "temperatures", ['arms=["proposer=none","proposer=ngram sampling.temperature=1"]'],
        ["the same sampling in every arm"],
    ),
    Mistake("reference", ["reference=ngrm"], ["reference='ngrm'", "0 to 2", "ngram"]),
    Mistake("reference_number", ["reference=3"], ["reference=3", "0 to 2"]),
    Mistake("reference_type", ["reference=true"], ["reference=True", "0 to 2"]),
    Mistake("open_quote", ["arms=[\"proposer=ngram 'x\"]"], ["arms", "proposer=ngram 'x"]),
]  # fmt: skip


def contents(folder: Path) -> dict[str, str]:
    """Read every file below a folder."""
    # A lock is empty, and stays where somebody has looked whether it is held.
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def write(files: dict[str, str], folder: Path) -> None:
    """Write files; a lone surrogate stands for a byte that is not UTF-8."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", errors="surrogateescape")


def check(cli: CommandLine, entry_point: str, options: Sequence[str], mistake: Mistake) -> None:
    """Make a mistake in a folder that holds an earlier run."""
    write(mistake.files, Path())
    write(EARLIER, Path("run"))
    try:
        ended = cli(entry_point, *options, *mistake.options)
    except Exception as error:
        message = f"{mistake.options}: a mistake of the user's ended in a traceback: {error!r}"
        raise AssertionError(message) from error
    assert_one_line(ended, mistake.names)
    assert contents(Path("run")) == EARLIER, "bad input touched the results of an earlier run"


def check_decoding(cli: CommandLine, tiny: Tiny, mistake: Mistake) -> None:
    """Use the cheaper entry point where both have the option."""
    only_compare = any(option.startswith(("arms=", "turn=")) for option in mistake.options)
    check(cli, "compare" if only_compare else "decode", tiny.options("run"), mistake)


def named(mistakes: Sequence[Mistake]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("mistake", mistakes, ids=lambda mistake: mistake.name)


@named(UNKNOWN)
def test_what_does_not_exist_is_named(cli: CommandLine, tiny: Tiny, mistake: Mistake) -> None:
    check_decoding(cli, tiny, mistake)


@named(PROMPT_FILES)
def test_prompts_that_cannot_be_decoded_are_refused_before_any_is(
    cli: CommandLine, tiny: Tiny, mistake: Mistake
) -> None:
    check_decoding(cli, tiny, mistake)


@named(OUT_OF_RANGE)
def test_numbers_out_of_range_are_refused(cli: CommandLine, tiny: Tiny, mistake: Mistake) -> None:
    check_decoding(cli, tiny, mistake)


@named(WRONG_TYPES)
def test_values_of_a_wrong_type_are_refused(cli: CommandLine, tiny: Tiny, mistake: Mistake) -> None:
    check_decoding(cli, tiny, mistake)


@named(MISTYPED)
def test_mistyped_options_are_refused(cli: CommandLine, tiny: Tiny, mistake: Mistake) -> None:
    check_decoding(cli, tiny, mistake)


@named(OF_PAIRS)
def test_parts_that_do_not_go_together_are_refused_before_a_model_is_loaded(
    cli: CommandLine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, mistake: Mistake
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("a model was loaded although the options cannot work")

    monkeypatch.setattr("specdec.lm.load.HFCausalLM", loaded)
    check_decoding(cli, tiny, mistake)


@named([*OUT_OF_RANGE[:1], *PROMPT_FILES[:4], *MISTYPED[:1]])
def test_compare_refuses_alike(cli: CommandLine, tiny: Tiny, mistake: Mistake) -> None:
    check(cli, "compare", tiny.options("run", 'arms=["proposer=none"]'), mistake)


@named(OF_COMPARE)
def test_what_arms_cannot_differ_in_is_named(
    cli: CommandLine, tiny: Tiny, mistake: Mistake
) -> None:
    check(cli, "compare", tiny.options("run"), mistake)


@pytest.mark.usefixtures("fresh_accelerator")
@named(OF_TRAINING)
def test_train_refuses_alike(cli: CommandLine, tiny: Tiny, mistake: Mistake) -> None:
    options = [f"data.path={tiny.text}", f"data.held_out_path={tiny.text}", "output=run"]
    small = ["train.block_length=16", "train.vocab_size=300", "train.hidden_size=12"]
    check(cli, "train", ["train=lm", *options, *small, "max_steps=1"], mistake)


def test_a_tree_that_training_cannot_measure_acceptance_with_is_refused(
    cli: CommandLine, tiny: Tiny
) -> None:
    """And not only when the first evaluation comes."""
    options = [f"data.path={tiny.text}", f"data.held_out_path={tiny.text}", "output=run"]
    models = ["train=medusa", f"verifier.path={tiny.verifier}", "max_steps=1"]
    tree = Mistake(
        "tree", ["tree=sampled", "tree.draw=top_plus_one"],
        ["verification=rejection", "top_plus_one", "another rule, tree"],
    )  # fmt: skip
    check(cli, "train", [*options, *models], tree)


def test_train_names_the_option_that_is_missing(cli: CommandLine, tiny: Tiny) -> None:
    ended = cli("train", f"data.held_out_path={tiny.text}", "output=run")
    assert_one_line(ended, ["data.path"])


def test_a_draft_with_another_tokenizer_is_refused(cli: CommandLine, tiny: Tiny) -> None:
    """Both models have 300 logits: the tokenizers have to be compared, not the widths."""
    mistake = Mistake(
        "stranger", ["proposer=draft_model", f"draft.path={tiny.stranger}"],
        [f"draft.path='{tiny.stranger}'", f"verifier.path='{tiny.verifier}'", "tokenizer"],
    )  # fmt: skip
    check_decoding(cli, tiny, mistake)


def test_a_draft_with_padded_logits_is_not_refused(cli: CommandLine, tiny: Tiny) -> None:
    """Padding differs within families (Qwen3 0.6B and 8B, say); the tokenizer is the same."""
    options = ["proposer=draft_model", f"draft.path={tiny.padded}", "prompts.limit=1"]
    ended = cli("decode", *tiny.options("run", *options))
    assert ended.status == 0, f"a draft with the verifier's tokenizer was refused:\n{ended.err}"


def test_a_missing_gpu_is_named(
    cli: CommandLine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    mistake = Mistake("no_gpu", ["device=cuda"], ["device='cuda'", "no GPU", "device=cpu"])
    check_decoding(cli, tiny, mistake)


@pytest.mark.parametrize("place", ["file", "file/below"])
@pytest.mark.parametrize("entry_point", ["compare", "train"])
def test_a_folder_that_cannot_be_made_is_named(
    cli: CommandLine, tiny: Tiny, entry_point: str, place: str
) -> None:
    """Root may write anywhere, but not below a regular file."""
    Path("file").write_text("precious")
    options = tiny.options(place)
    if entry_point == "train":
        text = f"data.path={tiny.text}"
        options = [text, f"data.held_out_path={tiny.text}", f"output={place}", "max_steps=1"]
    check(cli, entry_point, options, Mistake("unwritable", [], ["file"]))
    assert Path("file").read_text() == "precious"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["max_new_token=3"], ["max_new_token"]),
        (["sampling.temperature=-1"], ["sampling.temperature=-1"]),
        (["output=file/below"], ["file"]),
    ],
    ids=["mistyped", "negative", "unwritable"],
)
def test_a_process_of_its_own_prints_one_line(
    tiny: Tiny, options: Sequence[str], names: Sequence[str]
) -> None:
    """As users see it: warnings of libraries and Hydra's own messages would show up here."""
    Path("file").write_text("precious")
    command = [sys.executable, "-m", "specdec", "compare", *tiny.options("run")]
    ended = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert_complaint(ended.returncode, ended.stderr, names)
    assert not list(Path().rglob("status.json"))
