"""Two runs are one run if they use the same options, and their names say what they use."""

from typing import Any

import hydra
import pytest
from omegaconf import MissingMandatoryValue

from specdec.command.options import plain
from specdec.core.plug_ins import plug_in_name
from specdec.results.options import identity, known_by, options, proposes_nothing, run_name, targets


def compose(*overrides: str) -> dict[str, Any]:
    with hydra.initialize_config_module("specdec.configs", version_base="1.3"):
        return plain(hydra.compose("decode", list(overrides)))


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
    plain = compose("proposer=draft_model")
    changed = compose("proposer=draft_model", override)
    assert options(plain) != options(changed)
    assert identity(known_by(plain, {}, {})) != identity(known_by(changed, {}, {}))


def test_options_bear_the_names_of_the_command_line() -> None:
    """So that whoever reads a report can ask for the same again."""
    used = options(compose("proposer=draft_model", "tree=sampled", "tree.widths=[2,1]"))
    chosen = {name: value for name, value in used.items() if name not in ("device", "dtype")}
    assert chosen["proposer"] == "draft_model"
    assert chosen["tree"] == "sampled"
    assert chosen["tree.widths"] == [2, 1]
    assert chosen["verification"] == "rejection"
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
    ("target", "name"),
    [
        ("specdec.proposer.none.NoProposer", "none"),
        ("specdec.proposer.medusa.Medusa.load", "medusa"),
        ("specdec.proposer.recorded.Recorded.from_run", "recorded"),
        ("my_lab.drafts.medusa.Medusa.load", "my_lab.drafts.medusa.Medusa.load"),
        ("my_lab.none.build", "my_lab.none.build"),
    ],
)
def test_plug_ins_are_called_by_their_file_if_they_are_ours(target: str, name: str) -> None:
    assert plug_in_name(target) == name


def test_numbers_that_are_equal_are_the_same_option() -> None:
    one = compose("proposer=ngram", "sampling.temperature=1", "sampling.top_p=1")
    other = compose("proposer=ngram", "sampling.temperature=1.0", "sampling.top_p=1.0")
    assert options(one) == options(other)
    assert known_by(one, {}, {}) == known_by(other, {}, {})
    assert known_by(one, {}, {}) != known_by(
        compose("proposer=ngram", "sampling.temperature=0.9"), {}, {}
    )


def test_true_is_no_number() -> None:
    flags = [compose("proposer=ngram", f"+proposer.flag={value}") for value in ("true", "1")]
    assert len({identity(known_by(flag, {}, {})) for flag in flags}) == 2


def test_a_seed_of_the_proposers_own_hides_no_other() -> None:
    configs = [compose("proposer=recorded", f"seed={seed}", "proposer.seed=5") for seed in (0, 1)]
    known = [known_by(config, {}, {}) for config in configs]
    assert identity(known[0]) != identity(known[1])
    assert all(each["proposer.seed"] == 5 for each in known)


def test_options_that_lie_deep_are_known_by_their_own_names() -> None:
    config = compose("proposer=ngram", "+proposer.store={index:{path:a,size:2.0}}")
    assert options(config)["proposer.store.index.size"] == 2
    known = known_by(config, {"proposer.store.index.path": "0123"}, {})
    assert known["proposer.store.index.path"] == {"content": "0123"}


def test_two_classes_of_one_module_are_two_plug_ins() -> None:
    configs = [compose("proposer=ngram", f"proposer._target_=lab.mine.{name}") for name in "AB"]
    assert identity(known_by(configs[0], {}, {})) != identity(known_by(configs[1], {}, {}))
    assert targets(configs[0])["proposer"] == "lab.mine.A"


def test_a_class_of_ones_own_in_a_file_called_none_proposes_something() -> None:
    assert proposes_nothing(compose("proposer=none"))
    assert not proposes_nothing(compose("proposer=none", "proposer._target_=lab.none.NoProposer"))
    assert "verification" in options(compose("proposer=none", "proposer._target_=lab.none.No"))


def test_names_are_those_that_were_chosen() -> None:
    config = compose("proposer=ngram", "choices={proposer:mine,tree:chain}")
    assert options(config)["proposer"] == "mine"
    assert known_by(config, {}, {}) == known_by(compose("proposer=ngram"), {}, {})


def test_a_missing_value_is_no_option() -> None:
    with pytest.raises(MissingMandatoryValue):
        compose("prompts.path='???'")


def test_policies_of_a_cache_without_a_limit_are_one() -> None:
    def known(*overrides: str) -> dict[str, Any]:
        return known_by(compose(*overrides), {}, {})

    assert known("cache=clear") == known() == known("cache=sliding_window", "cache.keep_first=3")
    limited = [known(f"cache={name}", "cache.max_tokens=9") for name in ("clear", "error")]
    assert limited[0] != limited[1] != known()
    assert known("verifier.cache=none") != known()
    used = options(compose("cache=clear", "cache.max_tokens=9"))
    assert used["cache"] == "clear"
    assert used["cache.max_tokens"] == 9
