"""Two runs are one run if they use the same options, and their names say what they use."""

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from specdec.report.options import identity, options, run_name, stem_of_target


def compose(*overrides: str) -> DictConfig:
    with hydra.initialize_config_module("specdec.configs", version_base="1.3"):
        return hydra.compose("decode", list(overrides))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["proposer=none", "tree.gamma=2"], ["proposer=none", "tree.gamma=8"]),
        (["proposer=none", "verification=block"], ["proposer=none", "judges=[match]"]),
        (["proposer=none", "draft.path=a"], ["proposer=none", "draft.path=b"]),
        (["proposer=ngram", "draft.path=a"], ["proposer=ngram", "draft.path=b"]),
        (["proposer=medusa", "tree=sparse", "resume=false"], ["proposer=medusa", "tree=sparse"]),
        (["keep_candidates=0", "dry_run=true"], ["sweep.over=[seed]"]),
    ],
)
def test_what_is_not_used_does_not_matter(one: list[str], other: list[str]) -> None:
    assert options(compose(*one)) == options(compose(*other))


@pytest.mark.parametrize(
    "override",
    [
        *("tree.gamma=5", "tree=sampled", "draft.path=b", "draft.dtype=bfloat16", "seed=1"),
        *("verification=block", "judges=[block]", "proposer.temperature=0.5", "batch=2"),
        *("sampling.temperature=1", "prompts.limit=3", "max_new_tokens=9", "stop_strings=[x]"),
        *("device=cuda", "dtype=bfloat16", "attention=eager", "verifier.path=b"),
        *("proposer=ngram", "prompts.chat_template=raw", "tree.min_confidence=0.1"),
    ],
)
def test_what_is_used_does(override: str) -> None:
    plain = options(compose("proposer=draft_model"))
    changed = options(compose("proposer=draft_model", override))
    assert plain != changed
    assert identity(plain) != identity(changed)


def test_options_bear_the_names_of_the_command_line() -> None:
    """So that whoever reads a report can ask for the same again."""
    used = options(compose("proposer=draft_model", "tree=sampled", "tree.widths=[2,1]"))
    told = {name: value for name, value in used.items() if name not in ("device", "dtype")}
    assert told["proposer"] == "draft_model"
    assert told["tree"] == "sampled"
    assert told["tree.widths"] == [2, 1]
    assert told["verification"] == "rejection"
    again = [f"{name}={'null' if value is None else value}" for name, value in used.items()]
    again = [text.replace("'", "") for text in again if "zoo" not in text]
    assert options(compose(*again)) == used


def test_identity_is_a_function_of_values_not_of_order() -> None:
    assert identity({"a": 1, "b": [2]}) == identity({"b": [2], "a": 1})
    assert identity({"a": 1}) != identity({"a": 2}) != identity({"a": "2"})


@pytest.mark.parametrize("value", ["Qwen/Qwen3-8B", "../up", "a b\tc", "x'y\"z", "..", "ae:*?<>|"])
def test_names_are_fit_for_a_folder(value: str) -> None:
    name = run_name({"verifier.path": value, "tree.gamma": 4}, ["verifier.path"], "0123456789")
    assert not set(name) & set("/\\ \t'\"*?<>|:\n")
    assert not name.startswith(".")
    assert name.endswith("-01234567")


def test_a_name_leaves_out_what_the_run_does_not_use_and_stays_short() -> None:
    used = options(compose("proposer=ngram", "tree.gamma=2", "sampling.temperature=0.7"))
    keys = ["proposer", "tree", "tree.gamma", "sampling.temperature"]
    assert run_name(used, keys, "abcdefgh") == "ngram,gamma=2,temperature=0.7-abcdefgh"
    assert run_name({"tree.paths": [[0] * 500]}, ["tree.paths"], "abcdefgh").endswith("-abcdefgh")
    assert len(run_name({"tree.paths": [[0] * 500]}, ["tree.paths"], "abcdefgh")) < 100
    assert run_name(used, [], "abcdefgh") == "default-abcdefgh"


@pytest.mark.parametrize(
    ("target", "stem"),
    [
        ("specdec.proposer.none.NoProposer", "none"),
        ("specdec.proposer.medusa.Medusa.load", "medusa"),
        ("specdec.proposer.recorded.Recorded.from_run", "recorded"),
        ("my_lab.drafts.mine.Mine", "mine"),
        ("my_lab.drafts.mine.build", "mine"),
    ],
)
def test_plug_ins_are_called_by_their_file(target: str, stem: str) -> None:
    assert stem_of_target(target) == stem


def test_a_missing_value_is_no_option() -> None:
    config = compose()
    OmegaConf.update(config, "prompts.path", "???")
    with pytest.raises(Exception, match="Missing"):
        options(config)
