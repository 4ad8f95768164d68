"""A constructor complains of its own parameters; who builds it knows the options they come from."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from specdec.command import launch
from specdec.command.options import plain, points
from specdec.core.errors import Unfit, UserError
from specdec.lab.option_names import named_options
from specdec.lab.part import Part

ROOT = Path(__file__).parents[2]
# What stands on the command line before an option of a plug-in.
MOUNTED = ("tree", "proposer", "verification", "train", "tuning", "trainer", "evaluation", "loss")


def composed(command: str, *overrides: str) -> DictConfig:
    assert launch  # whose resolvers a configuration needs
    with initialize_config_module("specdec.configs", version_base="1.3"):
        return compose(command, list(overrides))


def part(config: DictConfig, node: str) -> Part[Any]:
    options: Any = plain(config)
    for name in node.split("."):
        options = options[name]
    return Part(node, options, points=points(config))


@pytest.mark.parametrize(
    ("command", "node", "option", "said"),
    [
        ("decode", "tree", "tree.gamma=0", "tree.gamma=0: expected an integer >= 1"),
        ("decode", "sampling", "sampling.top_p=0", "sampling.top_p=0: expected a number in (0, 1]"),
        ("decode proposer=ngram", "proposer", "tree.gamma=0", "tree.gamma=0: expected an integer"),
        (
            "decode proposer=ngram",
            "proposer",
            "proposer.min_ngram=9",
            "proposer.min_ngram=9: expected at most proposer.max_ngram=3",
        ),
        ("decode proposer=draft_model", "proposer", "tree.gamma=0", "tree.gamma=0: expected"),
        (
            "decode verification=lenient",
            "verification.rule",
            "verification.rule.lenience=0",
            "verification.rule.lenience=0: expected a number in (0, 1]",
        ),
        ("decode", "verifier", "verifier.path=no/model", "verifier.path='no/model': not loaded"),
        ("decode", "verifier", "verifier.adapter=none", "verifier.adapter='none': expected"),
        ("decode", "verifier", "dtype=half", "dtype='half': expected one of"),
        ("decode proposer=draft_model", "proposer", "draft.path=no/model", "draft.path='no/model'"),
        ("decode proposer=draft_model", "proposer", "draft.max_length=0", "draft.max_length=0: "),
        (
            "decode proposer=draft_model",
            "proposer",
            "draft.revision=v1",
            "draft.revision='v1': draft.path='zoo:draft' lies here",
        ),
        ("train data.path=zoo:train", "train", "verifier.max_length=1", "verifier.max_length=1: "),
        ("calibrate output=x", "proposer", "draft.max_length=0", "draft.max_length=0: expected"),
        ("train data.path=x", "train", "train.num_layers=-1", "train.num_layers=-1: expected"),
        ("train data.path=x", "tuning", "train.num_heads=0", "train.num_heads=0: expected"),
        ("train data.path=x", "train", "data.max_length=0", "data.max_length=0: expected"),
        ("train data.path=x", "train", "distill.top_k=-1", "distill.top_k=-1: expected"),
        ("train data.path=x", "tuning", "data.held_out_share=1", "data.held_out_share=1: expected"),
        ("train data.path=x", "trainer", "max_steps=0", "max_steps=0: expected an integer >= 1"),
        (
            "train train=lm data.path=x",
            "train",
            "train.revision=v1",
            "train.revision='v1': expected train.init_path=MODEL or train.tokenizer_path=MODEL",
        ),
    ],
)
def test_complaints_bear_the_names_of_options(
    command: str, node: str, option: str, said: str
) -> None:
    with pytest.raises(UserError) as caught:
        part(composed(*command.split(), option), node).build()
    assert str(caught.value).startswith(said)


def test_work_that_is_done_later_complains_in_the_same_words() -> None:
    config = composed("decode", "proposer=medusa")
    with pytest.raises(Unfit) as caught, named_options(part(config, "proposer").names):
        raise Unfit("tree: 9 levels, but 4 heads in path='x'")
    assert str(caught.value) == "tree: 9 levels, but 4 heads in proposer.path='x'"


def test_values_and_other_options_stay_as_they_are() -> None:
    config = composed("decode", "proposer=medusa")
    said = "prompts.path='a path=b': no such file; expected path.txt or mypath=c"
    with pytest.raises(UserError) as caught, named_options(part(config, "proposer").names):
        raise UserError(said)
    assert str(caught.value) == said


def _mounting(path: Path) -> Iterator[str]:
    """Find texts in constructors that name an option with the place where it is mounted."""
    named = re.compile(rf"^(?:{'|'.join(MOUNTED)})\.[a-z_]+(?:\.[a-z_]+)?=?$")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name in ("__init__", "__post_init__"):
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and named.match(str(part.value)):
                    yield f"{path.relative_to(ROOT)}:{part.lineno}: {part.value}"


def test_constructors_do_not_know_where_they_are_mounted() -> None:
    rooms = ("core", "tree", "verification", "heads", "proposer", "training")
    files = [file for room in rooms for file in (ROOT / "specdec" / room).rglob("*.py")]
    assert not [found for file in files for found in _mounting(file)]
