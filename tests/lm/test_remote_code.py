"""Models with code of their own: run only if asked for, proven as all are, and known by it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.stopping import Stopping
from specdec.lm.checkpoint import Checkpoint
from specdec.lm.fingerprint import fingerprint
from specdec.lm.load import load
from specdec.lm.loadable import require_loadable, room_for, vocabulary_size
from specdec.proposer.draft_model import DraftModel
from specdec.results.run_dir import read_traces
from specdec.tree.chain import Chain
from specdec.verification.rejection import Rejection
from tests.support.running import CommandLine, Tiny

CONFIGURATION = """
from transformers import LlamaConfig

class TwistedConfig(LlamaConfig):
    model_type = "twisted"
"""
# A Llama whose logits are turned around: what the stock class makes of its weights is another text.
MODEL = """
from transformers import LlamaForCausalLM
from .configuration_twisted import TwistedConfig

class TwistedForCausalLM(LlamaForCausalLM):
    config_class = TwistedConfig

    def forward(self, *args, **options):
        found = super().forward(*args, **options)
        found.logits = found.logits.flip(-1)
        return found
"""
WITHOUT_A_MASK = MODEL.replace(
    "found = super()", "options['attention_mask'] = None\n        found = super()"
)
TRUSTED = "verifier.trust_remote_code=true"


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """The tiny verifier, whose logits code of its own turns around."""
    return twisted(tiny, tmp_path / "twisted", MODEL)


def twisted(tiny: Tiny, folder: Path, model: str) -> Path:
    shutil.copytree(tiny.verifier, folder)
    (folder / "configuration_twisted.py").write_text(CONFIGURATION, encoding="utf-8")
    (folder / "modeling_twisted.py").write_text(model, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    auto_map = {
        "AutoConfig": "configuration_twisted.TwistedConfig",
        "AutoModelForCausalLM": "modeling_twisted.TwistedForCausalLM",
    }
    named = {"model_type": "twisted", "architectures": ["TwistedForCausalLM"], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config | named), encoding="utf-8")
    return folder


def test_code_is_run_only_if_that_is_asked_for(folder: Path, tiny: Tiny) -> None:
    for refuse in (load, require_loadable):
        with pytest.raises(UserError) as caught:
            refuse(str(folder))
        assert str(caught.value) == (
            f"path={str(folder)!r}: comes with code of its own, which is not run unasked;"
            f" read it, and allow it with trust_remote_code=true"
        )
    for ask in (vocabulary_size, room_for):
        with pytest.raises(UserError, match=r"allow it with draft\.trust_remote_code=true$"):
            ask(Checkpoint(str(folder), field="draft.path"))
    trusted = Checkpoint(str(folder), trust_remote_code=True)
    assert (vocabulary_size(trusted), room_for(trusted).tokens) == (300, 256)


def test_what_is_trusted_is_proven_and_decodes_as_generate_does(folder: Path, tiny: Tiny) -> None:
    verifier = load(str(folder), trust_remote_code=True)
    assert type(verifier.model).__name__ == "TwistedForCausalLM"
    assert verifier.tree_error is not None
    draft = load(str(tiny.draft), field="draft.path", vocabulary_of={"path": str(folder), **TRUST})
    ids = verifier.encode("def add(")
    stock: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    expected = stock.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[
        0, len(ids) :
    ]
    proposer = DraftModel(draft, Chain(3))
    stopping = Stopping.of(verifier, max_new_tokens=12)
    decoder = SpeculativeDecoder(verifier, proposer, Rejection(), Sampling(0.0), stopping)
    assert list(decoder.decode("def add(")[0].output_ids) == expected.tolist()


TRUST = {"trust_remote_code": True}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (WITHOUT_A_MASK, "cannot decode candidates|is not supported"),
        (f"import gone_for_ever\n{MODEL}", "not loaded"),
        (f"def wrong(\n{MODEL}", "not loaded"),
        (MODEL.replace("class Twisted", "class Renamed"), "not loaded"),
        (f"{MODEL}\nraise AssertionError('the card says so')", "the card says so"),
    ],
)
def test_code_that_does_wrong_is_refused_in_one_line(
    model: str, said: str, tiny: Tiny, tmp_path: Path
) -> None:
    spoilt = twisted(tiny, tmp_path / "spoilt", model)
    with pytest.raises(UserError, match=said) as caught:
        load(str(spoilt), trust_remote_code=True)
    assert "\n" not in str(caught.value)


def test_a_model_is_known_by_its_code(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    """The weights of both are equal, byte for byte; their texts are not."""
    first = fingerprint(load(str(folder), trust_remote_code=True))
    other = twisted(tiny, tmp_path / "other", MODEL.replace(".flip(-1)", ".roll(1, -1)"))
    second = fingerprint(load(str(other), trust_remote_code=True))
    assert first["weights"] == second["weights"]
    assert first["config"] != second["config"]
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    assert fingerprint(load(str(copied), trust_remote_code=True)) == {**first, "path": str(copied)}


@pytest.mark.usefixtures("empty_folder")
def test_a_run_is_known_by_the_code_that_it_ran(folder: Path, tiny: Tiny, cli: CommandLine) -> None:
    options = tiny.options("run", f"verifier.path={folder}")
    ended = cli("decode", *options)
    assert ended.status != 0
    assert ended.err.count("\n") == 1
    assert TRUSTED in ended.err
    ended = cli("decode", *options, TRUSTED)
    assert ended.status == 0, ended.err
    before = [trace.output_ids for trace in read_traces(Path("run"))]
    assert "complete" in cli("decode", *options, TRUSTED).out
    file = folder / "modeling_twisted.py"
    file.write_text(MODEL.replace(".flip(-1)", ".roll(1, -1)"), encoding="utf-8")
    ended = cli("decode", *options, TRUSTED)
    assert "holds a run of other options" in ended.err
    assert cli("decode", *options, TRUSTED, "resume=false").status == 0
    assert [trace.output_ids for trace in read_traces(Path("run"))] != before


@pytest.mark.parametrize("trusts", [1, "yes", None])
def test_trust_is_true_or_false(trusts: Any, tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"^trust_remote_code=.*: expected true or false"):
        load(str(tiny.verifier), trust_remote_code=trusts)
