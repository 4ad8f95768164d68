"""Contracts of the configuration, found by globbing: a new YAML file is tested by being there."""

import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from transformers import AutoTokenizer

from specdec.lm.fingerprint import tokenizer_digest
from specdec.proposer.datastore import write_datastore
from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")

CONFIGS = Path(__file__).parents[1] / "configs"
# A config group and the package that its plug-ins live in.
PACKAGES = {
    "proposer": "specdec.proposer",
    "tree": "specdec.tree",
    "verification": "specdec.verification",
    "cache": "specdec.cache",
    "pace": "specdec.pacing",
    "train": "specdec.training",
    "loss": "specdec.training.loss",
    "online": "specdec.online",
}
ENTRY_POINTS = (
    "compare",
    "decode",
    "train",
    "calibrate",
    "check",
    "record",
    "replay",
    "report",
    "costs",
    "describe",
    "explain",
)
# What a plug-in cannot do without: one line for each that needs a file or a folder.
NEEDED = {
    "online=distil": ["proposer=draft_model"],
    "proposer=recorded": ["proposer.path=recorded_run"],
    "proposer=retrieval": ["proposer.path=store"],
    "tree=calibrated": ["tree.path=tree.json", "tree.num_nodes=4"],
    "tree=sequoia": ["tree.path=tree.json", "tree.num_nodes=4", "sampling.temperature=1"],
    "verification=typical": ["verification.allow_lossy=true"],
    "verification=lenient": ["verification.allow_lossy=true"],
    "verification=top_k": ["verification.allow_lossy=true"],
}
# Experiments on the embedded family, which have heads that no other verifier may use.
OF_THE_ZOO = (
    *("demo", "acceptance_vs_temperature", "proposers_compared", "tree_budget"),
    "speedup_vs_batch",
)
SMALL = {  # options of `train=...` that make it small
    "lm": (
        "train.block_length=16",
        "train.vocab_size=300",
        "train.hidden_size=12",
        "train.num_hidden_layers=1",
        "train.num_attention_heads=1",
    ),
    "draft_model": (
        "data.max_length=16",
        "train.hidden_size=12",
        "train.intermediate_size=16",
        "train.num_attention_heads=1",
        "tree.gamma=2",
    ),
    "exit": ("data.max_length=16", "tree.gamma=2"),
}


def stems(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


PLUG_INS = [(group, stem) for group in PACKAGES for stem in stems(group)]
DECODING = [(group, stem) for group, stem in PLUG_INS if group not in ("train", "loss")]


def targets(node: Any) -> Iterator[dict[str, Any]]:
    """Find the mappings with a `_target_`."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from targets(value)


def plug_in(group: str, stem: str) -> dict[str, Any]:
    """Return the one mapping of a YAML file that says what to build."""
    (found,) = targets(yaml.safe_load((CONFIGS / group / f"{stem}.yaml").read_text()))
    return found


SEATED = [stem for stem in stems("proposer") if "verifier" in plug_in("proposer", stem)]
HEADS = [stem for stem in SEATED if stem in stems("train")]
NEEDED |= {f"proposer={stem}": ["proposer.path=heads", "tree=sparse"] for stem in HEADS}
NUMBER = {stem: "steps" if "steps" in plug_in("train", stem) else "num_heads" for stem in HEADS}
SMALL |= {stem: ("data.max_length=16", f"train.{NUMBER[stem]}=2", "tree.gamma=2") for stem in HEADS}


def locate(target: str) -> Any:
    """Import what a `_target_` names: a class, or a constructor of one."""
    module, *names = target.split(".")
    found: Any = import_module(module)
    for number, name in enumerate(names):
        if inspect.ismodule(found) and not hasattr(found, name):
            import_module(".".join([module, *names[: number + 1]]))
        found = getattr(found, name)
    return found


def composed(entry_point: str, overrides: Sequence[str]) -> DictConfig:
    with initialize_config_module("specdec.configs", version_base="1.3"):
        return compose(entry_point, list(overrides))


# --- Every plug-in ---


def test_every_group_has_a_folder_of_plug_ins() -> None:
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir()} - {"__pycache__"}
    unknown = groups - PACKAGES.keys() - {"experiment", "tracker", "debug"}
    assert not unknown, f"{unknown}: say in PACKAGES which package these plug-ins live in"
    assert all(stems(group) for group in PACKAGES), "globbing found nothing: the test is blind"


@pytest.mark.parametrize(("group", "stem"), PLUG_INS)
def test_a_plug_in_is_called_like_its_file(group: str, stem: str) -> None:
    """specdec/proposer/ngram.py <-> configs/proposer/ngram.yaml <-> proposer=ngram."""
    target = plug_in(group, stem)["_target_"]
    module = f"{PACKAGES[group]}.{stem}"
    assert target.startswith(f"{module}."), f"configs/{group}/{stem}.yaml builds {target}"


@pytest.mark.parametrize(("group", "stem"), PLUG_INS)
def test_a_plug_in_spells_out_its_constructor(group: str, stem: str) -> None:
    """Hydra refuses keys that are not there, so a parameter without a key cannot be set."""
    node = plug_in(group, stem)
    parameters = set(inspect.signature(locate(node["_target_"])).parameters)
    keys = node.keys() - {"_target_"}
    assert keys == parameters, (
        f"configs/{group}/{stem}.yaml: missing {parameters - keys}, unknown {keys - parameters}"
    )


@pytest.mark.parametrize("stem", stems("train"))
def test_a_training_has_the_defaults_of_its_constructor(stem: str) -> None:
    """So a notebook trains what the command line trains; of heads they are the module's own."""
    node = plug_in("train", stem)
    parameters = inspect.signature(locate(node["_target_"])).parameters
    for name, parameter in parameters.items():
        if parameter.default is not parameter.empty and "${" not in str(node[name]):
            assert node[name] == parameter.default, f"configs/train/{stem}.yaml: {name}"


def test_the_other_constructors_are_spelt_out_too() -> None:
    """The models, the sampling and the trainer are configured in the primary files."""
    for name in ("decode", "train", "calibrate", "sampling"):
        for node in targets(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())):
            if node["_target_"].endswith("load.load"):
                continue  # a draft has one key more than a verifier
            parameters = set(inspect.signature(locate(node["_target_"])).parameters)
            if name == "calibrate":  # which reads no text of its own, so that nothing is processed
                parameters &= {*("temperature", "top_k", "top_p", "min_p"), *node}
            assert node.keys() - {"_target_"} == parameters, f"configs/{name}.yaml: {node}"


@pytest.mark.parametrize(("group", "stem"), DECODING)
def test_a_plug_in_decodes(cli: CommandLine, tiny: Tiny, group: str, stem: str) -> None:
    """Composes, instantiates and runs, at the least with proposals from a draft model.

    And what it did can be explained.
    """
    choice = f"{group}={stem}"
    if group == "proposer" and stem in HEADS:
        train_heads(cli, tiny, stem)
    if choice in ("tree=calibrated", "tree=sequoia"):
        calibrate(cli, tiny)
    if choice == "proposer=retrieval":
        tokenizer: Any = AutoTokenizer.from_pretrained(tiny.verifier)
        write_datastore([tokenizer("a text").input_ids], Path("store"), tokenizer_digest(tokenizer))
    options = ["max_new_tokens=4", "prompts.limit=1"]
    if choice == "proposer=recorded":
        assert cli("decode", *tiny.options("recorded_run", *options)).status == 0
    chosen = [choice] if group == "proposer" else ["proposer=draft_model", choice]
    given = [*options, *chosen, *NEEDED.get(choice, [])]
    ended = cli("decode", *tiny.options("run", *given))
    assert ended.status == 0, f"{choice}: {ended.err}; does it need a line in NEEDED?"
    ended = cli("explain", *tiny.options("explained", *given))
    assert ended.status == 0, f"{choice}: {ended.err}"
    assert "step 1, behind" in ended.out
    config = OmegaConf.load("run/config.yaml")
    assert plug_in(group, stem)["_target_"] in OmegaConf.to_yaml(config)


def train(cli: CommandLine, tiny: Tiny, stem: str, *options: str):
    """Train for one step."""
    data = [f"data.path={tiny.text}", f"data.held_out_path={tiny.text}"]
    verifier = [] if stem == "lm" else [f"verifier.path={tiny.verifier}"]
    given = [f"train={stem}", *verifier, "max_steps=1", *SMALL[stem]]
    return cli("train", *given, *data, *options)


def calibrate(cli: CommandLine, tiny: Tiny) -> None:
    models = [f"verifier.path={tiny.verifier}", f"draft.path={tiny.draft}"]
    options = ["max_rank=99", "positional=true", "sampling.temperature=1", "output=tree.json"]
    ended = cli("calibrate", *models, f"data.path={tiny.text}", *options)
    assert ended.status == 0, ended.err


def train_heads(cli: CommandLine, tiny: Tiny, stem: str) -> None:
    ended = train(cli, tiny, stem, f"train.{NUMBER[stem]}=4", "output=heads")
    assert ended.status == 0, ended.err


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("stem", stems("train"))
def test_a_training_objective_trains(cli: CommandLine, tiny: Tiny, stem: str) -> None:
    ended = train(cli, tiny, stem, "output=trained")
    assert ended.status == 0, f"train={stem}: {ended.err}; does it need a line in SMALL?"
    assert "trained 1 steps" in ended.out


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("stem", stems("loss"))
def test_a_loss_trains_heads(cli: CommandLine, tiny: Tiny, stem: str) -> None:
    ended = train(cli, tiny, "medusa", f"loss={stem}", "output=trained")
    assert ended.status == 0, f"loss={stem}: {ended.err}"


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_draft_is_trained_on_what_the_verifier_wrote(cli: CommandLine, tiny: Tiny) -> None:
    """Two runs share the answers; other settings are refused in one line."""
    answers = ["distill.path=answers.jsonl", "distill.max_new_tokens=8", "distill.prompt_tokens=8"]
    for loss in ("kl", "cross_entropy"):
        ended = train(cli, tiny, "draft_model", f"loss={loss}", f"output={loss}", *answers)
        assert ended.status == 0, ended.err
    written = Path("answers.jsonl").read_text()
    decoded = cli("decode", *tiny.options("run", "proposer=draft_model", "draft.path=kl"))
    assert decoded.status == 0, decoded.err
    ended = train(cli, tiny, "draft_model", "output=other", *answers, "distill.temperature=0.5")
    assert ended.status == 2
    assert ended.err.splitlines()[-1].startswith("error: distill.path='answers.jsonl': was written")
    assert "temperature" in ended.err
    assert Path("answers.jsonl").read_text() == written


# --- Every experiment ---


def entry_point_of(stem: str) -> str:
    """Return the command that an experiment says it is for; it must have all that it sets.

    Hydra merges a misspelt key of a YAML file without a word, and nothing ever reads it.
    """
    body = yaml.safe_load((CONFIGS / "experiment" / f"{stem}.yaml").read_text())
    entry_point = body.pop("command")
    choices = [
        f"{group.removeprefix('override /')}={choice}"
        for entry in body.pop("defaults", [])
        if isinstance(entry, dict)
        for group, choice in entry.items()
    ]
    swept = body.pop("hydra", {}).get("sweeper", {}).get("params", {})
    choices += [f"{name}={values}".split(",")[0] for name, values in swept.items()]
    unknown = unknown_keys(body, composed(entry_point, choices))
    assert not unknown, f"experiment={stem} sets what {entry_point} does not have: {unknown}"
    return entry_point


def unknown_keys(body: dict[str, Any], config: DictConfig, prefix: str = "") -> list[str]:
    """List the keys of a YAML file that a configuration does not have."""
    found: list[str] = []
    known = list(config.keys())  # `in` would not find what is still missing
    for key, value in body.items():
        if key not in known:
            found.append(prefix + key)
        elif isinstance(value, dict) and isinstance(config.get(key), DictConfig):
            found += unknown_keys(value, config[key], f"{prefix}{key}.")
    return found


@pytest.mark.thorough
@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("stem", stems("experiment"))
def test_an_experiment_runs_shortened(cli: CommandLine, tiny: Tiny, stem: str) -> None:
    entry_point = entry_point_of(stem)
    if entry_point == "train":
        data = [f"data.path={tiny.text}", f"data.held_out_path={tiny.text}"]
        overrides = [f"verifier.path={tiny.verifier}", "debug=fast", "data.max_length=16"]
        decoded = f"decode=['prompts.path={tiny.prompts}','max_new_tokens=4']"
        options = [*data, *overrides, decoded, "output=run", "sweep.most=3"]
    else:
        short = ["max_new_tokens=2", "prompts.limit=1"]
        if entry_point == "decode":
            short += ["output=run", "debug=fast", "sweep.most=3"]
        embedded = stem in OF_THE_ZOO
        options = ["output=run", *short] if embedded else tiny.options("run", *short)
    ended = cli(entry_point, f"experiment={stem}", *options)
    assert ended.status == 0, ended.err
    states = [path.read_text() for path in Path("run").rglob("status.json")]
    assert all('"complete"' in state for state in states)
    assert states, "the experiment decoded nothing"


# --- Help ---


def examples(entry_point: str) -> list[list[str]]:
    """Cut the commands out of a help text, as a shell would split them."""
    config = yaml.safe_load((CONFIGS / f"{entry_point}.yaml").read_text())
    header = config["hydra"].get("help", {}).get("header", "")
    lines = re.sub(r"\\\n\s*", "", header).splitlines()
    commands = [line.strip() for line in lines if line.strip().startswith("python ")]
    return [shlex.split(command) for command in commands]


def require_composed(entry_point: str, arguments: Sequence[str]) -> DictConfig:
    """Compose a command line, and every arm in it; returns the configuration."""
    overrides = [text for text in arguments if "=" in text]  # others are flags, or folders
    if "-m" in arguments:  # the first combination stands for all
        overrides = [re.sub(r"=([^\[,]+),.*", r"=\1", text) for text in overrides]
    try:
        config = composed(entry_point, overrides)
        for arm in [*config.get("arms", []), *config.get("options", [])]:
            composed("compare" if entry_point == "compare" else "decode", arm.split())
    except HydraException as error:
        reason = " ".join(str(error).split())
        raise AssertionError(f"the example {shlex.join(overrides)!r} fails: {reason}") from None
    return config


HELP = """
import resource, sys
from importlib import import_module
main = getattr(import_module("specdec.command.doors"), sys.argv[1])
sys.argv = ["specdec", "--help"]
try:
    main()
finally:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print("CPU SECONDS", usage.ru_utime + usage.ru_stime)
    print("HEAVY", sorted({"torch", "transformers", "accelerate", "datasets"} & sys.modules.keys()))
"""


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_help_is_quick_and_complete(entry_point: str) -> None:
    """Torch takes seconds to import; nobody who asks for help should wait for it."""
    command = [sys.executable, "-c", HELP, entry_point]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "HEAVY []" in ended.stdout, "--help imports what only a run needs"
    # Seconds of this process alone, so that a busy machine cannot fail the test.
    found = re.search(r"CPU SECONDS ([\d.]+)", ended.stdout)
    assert found is not None
    assert float(found[1]) < 5
    for group in PACKAGES.keys() & read_groups(entry_point):
        for stem in stems(group):
            assert stem in ended.stdout, f"--help does not list {group}={stem}"


def read_groups(entry_point: str) -> set[str]:
    """Return the config groups that an entry point chooses from."""
    config = yaml.safe_load((CONFIGS / f"{entry_point}.yaml").read_text())
    groups = {name for entry in config["defaults"] if isinstance(entry, dict) for name in entry}
    return groups | (read_groups("decode") if "decode" in config["defaults"] else set())


def test_help_of_a_real_command_line() -> None:
    command = [sys.executable, "-m", "specdec", "compare", "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "Examples:" in ended.stdout
    assert not ended.stderr


@pytest.mark.parametrize("name", ["compare", "decode", "record", "replay", "train"])
def test_runs_of_one_second_have_folders_of_their_own(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    assert re.search(r"^output: .*\$\{now:[^}]*%S-%f\}", text, re.MULTILINE)
