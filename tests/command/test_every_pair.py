"""Every proposer with every tree and every rule: it decodes, or is refused with the reason.

The refusal comes from the options alone, before any model is loaded; what is not refused there
must not be refused later either.
"""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from specdec.core.errors import UserError
from specdec.core.values import Draw
from specdec.lm.hf import HFCausalLM
from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")

CONFIGS = Path(__file__).parents[2] / "configs"
PATHS = [[0], [1], [0, 0]]


def stems(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


TREES = stems("tree")
RULES = stems("verification")
# How a proposer that grows the tree it is given chooses candidates, by the options of the tree.
DRAWS = {
    ("chain",): Draw.SINGLE,
    ("filtered",): Draw.FILTERED,
    ("dynamic",): Draw.DETERMINISTIC,
    ("best_first",): Draw.DETERMINISTIC,
    ("sparse",): Draw.DETERMINISTIC,
    ("calibrated", "tree.path=tree.json", "tree.num_nodes=3"): Draw.DETERMINISTIC,
    ("sequoia", "tree.path=tree.json", "tree.num_nodes=3"): Draw.WITHOUT_REPLACEMENT,
    ("sampled",): Draw.WITHOUT_REPLACEMENT,
    ("sampled", "tree.draw=iid"): Draw.IID,
    ("sampled", "tree.draw=top_plus_one"): Draw.TOP_PLUS_ONE,
    ("paths",): Draw.PATHS,
    ("paths", "tree.num_paths=1"): Draw.SINGLE,
    ("sampled", "tree.widths=[1,1]", "tree.draw=iid"): Draw.SINGLE,
}


# A proposer that takes no tree sees each tree and each rule once; the others every pair.
GRID = [
    (proposer, tree, rule)
    for proposer in ("none", "ngram", "draft_model")
    for tree in DRAWS
    for rule in RULES
    if proposer == "draft_model" or tree[0] == "chain" or rule == "rejection"
]


@pytest.fixture(scope="module")
def verifier(tiny: Tiny) -> Any:
    """Load the one model that all pairs share."""
    return import_module("specdec.lm.load").load(str(tiny.verifier))


@pytest.fixture
def tree_file(empty_folder: Path) -> None:
    positional = {"acceptance": [[0.5, 0.2]], "all_depths": True}
    measured = {"joint": {"paths": PATHS}, "positional": positional}
    (empty_folder / "tree.json").write_text(json.dumps(measured))


def composed(tiny: Tiny, proposer: str, tree: Sequence[str], rule: str) -> DictConfig:
    lossy = "verification.allow_lossy=true"
    parts = [f"proposer={proposer}", f"tree={tree[0]}", *tree[1:], f"verification={rule}", lossy]
    options = [*parts, "sampling.temperature=1", "max_new_tokens=6"]
    models = [option for option in tiny.options("run") if not option.startswith("hydra")]
    with initialize_config_module("specdec.configs", version_base="1.3"):
        return compose("decode", [*models, *options])


def refusal(config: DictConfig) -> str | None:
    """Return why the options are refused, if they are."""
    try:
        import_module("specdec.lab.checks").check_options(arm_spec(config))
    except UserError as error:
        return str(error)
    return None


def decoded(config: DictConfig, verifier: Any) -> int:
    """Decode a few tokens; returns how many draft tokens were submitted."""
    spec = arm_spec(config)
    arm = import_module("specdec.lab.arm").build_arm(spec, verifier)
    traces = list(arm.decode(spec.prompts.load()))
    assert sum(len(trace.output_ids) for trace in traces) > 0
    return sum(step.drafted for trace in traces for step in trace.steps)


def defined_for(config: DictConfig) -> frozenset[Draw]:
    return arm_spec(config).rule.build().defined_for


def arm_spec(config: DictConfig) -> Any:
    return import_module("specdec.command.options").arm_spec(config)


def test_the_grid_holds_every_tree() -> None:
    assert {tree[0] for tree in DRAWS} == set(TREES), "say in DRAWS how the new tree draws"


@pytest.mark.usefixtures("tree_file")
@pytest.mark.parametrize(
    ("proposer", "tree", "rule"),
    GRID,
    ids=lambda part: part if isinstance(part, str) else ",".join(part),
)
def test_a_pair_decodes_or_is_refused_with_the_reason(
    tiny: Tiny, verifier: HFCausalLM, proposer: str, tree: Sequence[str], rule: str
) -> None:
    config = composed(tiny, proposer, tree, rule)
    draw = DRAWS[tuple(tree)] if proposer == "draft_model" else Draw.DETERMINISTIC
    reason = refusal(config)
    if proposer == "ngram" and tree[0] != "chain":
        assert reason is not None
        assert reason.startswith(f"tree={tree[0]}: proposer=ngram copies one text")
    elif proposer != "none" and draw not in defined_for(config):
        assert reason is not None
        assert reason.startswith(f"verification={rule}: cannot decide on {draw.value} candidates")
    else:
        assert reason is None, f"these go together: {reason}"
        assert (decoded(config, verifier) > 0) == (proposer != "none")


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("proposer", ["medusa", "chained"])
def test_heads_grow_sampled_trees_and_are_refused_alike(
    cli: CommandLine, tiny: Tiny, verifier: HFCausalLM, proposer: str
) -> None:
    data = [f"data.path={tiny.text}", f"data.held_out_path={tiny.text}", "data.max_length=16"]
    small = ["max_steps=1", "train.num_heads=2", "tree.gamma=2", "output=heads"]
    ended = cli("train", f"train={proposer}", f"verifier.path={tiny.verifier}", *data, *small)
    assert ended.status == 0, ended.err
    tree = ("sampled", "tree.widths=[2,1]", "proposer.path=heads")
    assert refusal(fitting := composed(tiny, proposer, tree, "traversal")) is None
    assert decoded(fitting, verifier) > 0
    reason = refusal(composed(tiny, proposer, tree, "block"))
    assert reason is not None
    assert reason.startswith("verification=block: cannot decide on without_replacement candidates")
