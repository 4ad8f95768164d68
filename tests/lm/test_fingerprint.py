"""Every element of every weight counts, whatever the type; where a model lies does not."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from specdec.core.errors import UserError
from specdec.lm.fingerprint import differences, fingerprint, require_trained_on
from specdec.lm.hf import HFCausalLM
from specdec.lm.load import load

if TYPE_CHECKING:
    from tests.support.running import Tiny


@pytest.fixture
def lm(tiny: "Tiny") -> HFCausalLM:
    """A model of one's own, whose weights may be changed."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(tiny.verifier))
    return HFCausalLM(model, load(str(tiny.verifier)).tokenizer)


def test_one_element_of_any_weight_makes_another_model(lm: HFCausalLM) -> None:
    before = fingerprint(lm)
    assert fingerprint(lm) == before
    for name, weight in lm.model.named_parameters():
        with torch.no_grad():
            for place in (0, weight.numel() // 2, weight.numel() - 1):
                flat = weight.view(-1)
                kept = flat[place].clone()
                flat[place] += 1.0
                assert differences(fingerprint(lm), before) == ["weights"], (name, place)
                flat[place] = kept
    assert differences(fingerprint(lm), before) == []


def test_the_smallest_change_of_a_float_is_one(lm: HFCausalLM) -> None:
    before = fingerprint(lm)
    weight = next(lm.model.parameters())
    with torch.no_grad():
        weight[1, 1] = torch.nextafter(weight[1, 1], torch.tensor(9.0))
    assert differences(fingerprint(lm), before) == ["weights"]


def test_two_types_are_compared_in_the_coarser_one(tiny: "Tiny") -> None:
    path = str(tiny.verifier)
    known = {name: fingerprint(load(path, dtype=name)) for name in ("float32", "bfloat16")}
    assert known["float32"]["weights"] != known["bfloat16"]["weights"]
    assert differences(known["float32"], known["bfloat16"]) == []
    assert differences(known["bfloat16"], known["float32"]) == []


def test_heads_of_another_verifier_are_refused(lm: HFCausalLM) -> None:
    known = fingerprint(lm)
    require_trained_on(lm, known, "proposer.path='mine'", force=False)
    with torch.no_grad():
        embedding: Any = lm.model.get_input_embeddings()
        embedding.weight[-1, -1] += 0.01
    with pytest.raises(UserError, match=r"trained on another verifier, .* \(weights differ\)"):
        require_trained_on(lm, known, "proposer.path='mine'", force=False)
    require_trained_on(lm, known, "proposer.path='mine'", force=True)


def test_weights_that_were_replaced_are_loaded_anew(tiny: "Tiny", tmp_path: Path) -> None:
    """What is remembered of a path is of the files that lay there, not of those that lie there."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny.verifier, folder)
    before = fingerprint(load(str(folder)))
    shutil.copy(tiny.draft / "model.safetensors", folder)
    assert differences(fingerprint(load(str(folder))), before) == ["weights"]
