"""A cascade on the command line: three models, each of which counts and is looked at."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from specdec.command.compose import compose_decode
from specdec.command.cost_shapes import planned
from specdec.command.options import arm_spec, plain
from specdec.core.errors import Unfit, UserError
from specdec.decoding.claims import claims_of
from specdec.lab.calibration.spec import CalibrationSpec
from specdec.lab.compatibility import require_parts_fit
from specdec.lab.identity import identity_of
from specdec.lab.replay.arms import ReplayArm
from specdec.lab.spec import ArmSpec
from specdec.proposer.cascade import Cascade
from specdec.proposer.ngram import NGram
from specdec.results.options import options
from specdec.testing.table_lm import random_table
from specdec.tree.chain import Chain
from specdec.verification.rejection import Rejection
from tests.support.families import RECURRENT, SMALL
from tests.test_configs import composed

pytestmark = pytest.mark.usefixtures("empty_folder")


def spec(*overrides: str) -> ArmSpec:
    return arm_spec(compose_decode(["proposer=cascade", *overrides]))


def test_all_models_are_known() -> None:
    found = spec('proposer.inner="draft_model draft.path=zoo:verifier tree.gamma=2"')
    assert [model.path for model in found.proposer.models] == ["zoo:draft", "zoo:verifier"]
    assert found.proposer.draft_model is not None
    assert found.proposer.draft_model.path == "zoo:draft"
    inner = found.proposer.inner
    assert inner is not None
    assert inner.options["tree"]["gamma"] == 2
    assert found.options["tree"]["gamma"] == 4
    used = options(found.options)
    assert (used["proposer.inner"], used["proposer.rule"]) == ("draft_model", "rejection")
    require_parts_fit(found)


def test_what_a_cascade_is_made_of_decides_which_run_it_is(tmp_path: Path) -> None:
    changes = [
        (),
        ("proposer.inner=none",),
        ('proposer.inner="ngram proposer.max_ngram=2"',),
        ('proposer.inner="ngram tree.gamma=7"',),
        ("proposer.inner=draft_model",),
        ('proposer.inner="draft_model draft.path=zoo:verifier"',),
        ("proposer.rule=match",),
        ("draft.path=zoo:verifier",),
        ("proposer.temperature=0.5",),
    ]
    found = [identity_of(spec(*change)) for change in changes]
    assert len(set(found)) == len(found)
    assert identity_of(spec("proposer.inner=ngram")) == found[0]
    # A folder that is called like a proposer is none of its files.
    (tmp_path / "ngram").mkdir()
    assert identity_of(spec("proposer.inner=ngram")) == found[0]


def test_options_that_were_saved_are_read_again() -> None:
    first = spec('proposer.inner="ngram tree.gamma=7"', "proposer.rule=match")
    again = ArmSpec.of(first.options)
    assert identity_of(again) == identity_of(first)
    assert again.proposer.inner is not None
    assert again.proposer.inner.options["gamma"] == 7


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("proposer.inner=medusa", "proposer.inner=medusa: reads hidden states"),
        ("proposer.inner=cascade", "proposer.inner='cascade': expected a proposer that is no"),
        ("proposer.inner=null", "proposer.inner=None: expected a proposer, ngram"),
        ('proposer.inner="ngram batch=2"', "proposer.inner='ngram batch=2': expected a proposer"),
        ("proposer.rule=typical", "proposer.rule: Typical is not lossless for deterministic"),
        ("proposer.rule=null", "proposer.rule=None: expected a rule, rejection"),
        ("tree=sampled", "tree: a cascade drafts one chain"),
        ("tree.min_confidence=0.5", "tree.min_confidence=0.5: a cascade drafts all"),
        ("verification=top_k", "not lossless for single candidates"),
    ],
)
def test_bad_options_are_refused_before_a_model_is_loaded(change: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as found:
        require_parts_fit(spec(change, *(["tree.widths=[2]"] if change == "tree=sampled" else [])))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("inner", "option"),
    [
        ("draft_model tree=sparse", "proposer.inner.tree"),
        ("suffix proposer.num_nodes=3", "proposer.inner.num_nodes=3"),
        ("hybrid proposer.parts=[suffix,ngram] proposer.mode=merge", "proposer.inner.mode=merge"),
    ],
)
def test_a_middle_model_that_reads_chains_alone_gets_no_branches(inner: str, option: str) -> None:
    AutoConfig.for_model("mamba2", **{**SMALL, **RECURRENT["mamba2"]}).save_pretrained("middle")
    with pytest.raises(Unfit, match=f"^{option}: draft.path='middle' cannot read trees"):
        require_parts_fit(spec("draft.path=middle", f'proposer.inner="{inner}"'))


def test_replay_takes_it_for_its_middle_model() -> None:
    """Its chains are that model's, so they are accepted as often, whoever drafts within."""
    arm = ReplayArm.of(spec("proposer.inner=none"))
    assert arm.closed is not None
    assert ReplayArm.of(spec()).draft == arm.draft
    alone = ReplayArm.of(arm_spec(compose_decode(["proposer=draft_model"])))
    assert alone.draft != arm.draft  # whose steps cost something else
    table = random_table()
    cascade = Cascade(table, NGram(2), Rejection(), Chain(2))
    whole = ReplayArm.of_parts(cascade, Rejection())
    assert whole.closed is not None
    assert whole.draft.known_by == str(id(table))


def test_a_tree_is_calibrated_with_the_model_alone() -> None:
    config = composed("calibrate", ["proposer=cascade", "output=tree.json", "data.path=text.txt"])
    with pytest.raises(UserError, match="proposer='cascade': expected one of medusa"):
        CalibrationSpec.of(plain(config), "cascade", {}).check()


class Foreign(NGram):
    """A proposer of somebody's own."""


def test_who_drafts_within_is_held_to_its_claims() -> None:
    """If its candidates were not what it says, those of the cascade would not be either."""
    for inner, held in ((NGram(2), False), (Foreign(2), True)):
        cascade = Cascade(random_table(), inner, Rejection(), Chain(2))
        assert (claims_of(cascade) is not None) is held


def test_its_steps_have_no_one_price(capsys: pytest.CaptureFixture[str]) -> None:
    config: Any = composed("costs", ["output=costs.json", "proposers=[cascade]"])
    _, specs = planned(config)
    assert list(specs) == ["none"]
    assert "left out of cascade: a chain costs what the middle model accepts" in (
        capsys.readouterr().out
    )
