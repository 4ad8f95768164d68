"""What `import specdec as sd` offers, and that `help` answers."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import specdec

sd: Any = specdec
PUBLIC = {
    "what a notebook does": "generate compare record replay train_heads describe explain",
    "what that returns": "Trace Comparison Recording Replay TrainedHeads Description Explanation",
    "what is refused": "UserError",
    "models and prompts": "load load_prompts HFCausalLM",
    "caches": "Clear ErrorWhenFull SlidingWindow",
    "the loop": "SpeculativeDecoder Request Stopping Sampling",
    "paces": "Adaptive",
    "proposers": "BlockDraft Cascade Chained DraftModel Eagle EarlyExit Hybrid LayerSkip Medusa Mtp"
    " NGram NoProposer Pool Recorded Retrieval Suffix",
    "trees": "BestFirst Calibrated Chain Dynamic Filtered Sampled Sequoia Sparse",
    "rules": "Block KSeq Lenient Match Rejection TopK TopPlusOne Traversal Typical",
    "training": "Trainer MedusaTraining ChainedTraining EagleTraining MtpTraining BlockTraining"
    " VerifierStates Reading Distill HeldOut OnlineDistillation",
    "losses": "CrossEntropy ExpectedAccepted KL LK TotalVariation",
    "numbers and proofs": "Tally summarize prove_lossless",
}
NAMES = sorted(name for names in PUBLIC.values() for name in names.split())


def test_these_are_the_public_names() -> None:
    assert sorted(sd.__all__) == NAMES
    assert sorted(name for name in dir(sd) if not name.startswith("_")) == NAMES


def test_every_name_is_what_the_list_says() -> None:
    """Types are read from `__init__.pyi`, and values from where it says."""
    stub = Path(specdec.__file__).with_suffix(".pyi")
    for node in ast.walk(ast.parse(stub.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name
                assert getattr(sd, alias.name).__module__.startswith(f"specdec.{node.module}")


@pytest.mark.parametrize("name", NAMES)
def test_help_answers(name: str) -> None:
    """Every name has a docstring, which explains all that it takes; a function's says the rest."""
    public = getattr(sd, name)
    said = public.__doc__ or ""
    assert said
    assert not re.match(rf"{name}\((\w+: |\))", said), "that is what dataclass writes"
    if public is sd.UserError:  # which takes what there is to say
        return
    for parameter in inspect.signature(public).parameters:
        assert re.search(rf"\b{parameter}\b", said), parameter
    if inspect.isfunction(public):
        assert {"Args:", "Returns:", "Raises:"} <= set(said.split())


def test_an_unknown_name_is_none() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = sd.no_such_name
