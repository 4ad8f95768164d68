"""Rules that a user brings along are proven before a model is loaded, in every command."""

from pathlib import Path

import pandas as pd
import pytest

from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")

MODULE = """
from dataclasses import replace
from specdec.core.closed_form import ClosedForm
from specdec.core.outcome import Outcome
from specdec.core.values import Draw
from specdec.verification.match import Match
from specdec.verification.rejection import Rejection

class Right(Rejection):
    pass

class FromP(Rejection):
    def verify(self, proposal, verifier_probs, stream):
        verdict = super().verify(proposal, verifier_probs, stream)
        if verdict.outcome is not Outcome.RECOVERED:
            return verdict
        last = verdict.path[-1] if verdict.path else 0
        return replace(verdict, next_token=stream.choose(verifier_probs[last]))

class Naive:
    lossless_for = frozenset({Draw.DETERMINISTIC, Draw.SINGLE})
    defined_for = lossless_for
    needs_q = False

    def verify(self, proposal, verifier_probs, stream):
        return Match().verify(proposal, verifier_probs, stream)

class Replayed(Naive):
    verify = Naive.verify
    decided_by_text = Naive.lossless_for

    def closed_form(self, draw):
        return ClosedForm(share, needs_p=False) if draw is Draw.SINGLE else None

def share(nodes):
    return nodes.of_text(nodes.q)[:, None]
"""
SAMPLED = ("proposer=draft_model", "sampling.temperature=1")


@pytest.fixture
def theirs(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a module beside the user's work; returns the option that chooses from it."""
    (empty_folder / "outside_rules.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(empty_folder))
    return "verification.rule._target_=outside_rules"


@pytest.mark.parametrize("command", ["decode", "record", "compare"])
def test_a_wrong_rule_is_refused_before_a_model_is_loaded(
    cli: CommandLine, tiny: Tiny, theirs: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specdec.lm.load._proven", None)  # loading would be a TypeError
    plug_ins = [f"{theirs}.FromP", *SAMPLED]
    if command == "compare":
        plug_ins = [f"arms=['proposer=none','{' '.join(plug_ins)}']", "sampling.temperature=1"]
        plug_ins[0] = plug_ins[0].replace(" sampling.temperature=1", "")
    ended = cli(command, *tiny.options("run", *plug_ins))
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert line.startswith("error: verification.rule=outside_rules.FromP: not lossless, though")
    assert "off by 0." in line
    assert not list(Path("run").rglob("traces.jsonl"))


def test_it_runs_where_that_is_allowed_and_says_so(
    cli: CommandLine, tiny: Tiny, theirs: str
) -> None:
    options = [*SAMPLED, "verification.allow_lossy=true", "prompts.limit=1"]
    assert cli("decode", *tiny.options("wrong", f"{theirs}.FromP", *options)).status == 0
    assert '"lossless": false' in Path("wrong/summary.json").read_text()
    assert cli("decode", *tiny.options("right", f"{theirs}.Right", *options)).status == 0
    assert '"lossless": true' in Path("right/summary.json").read_text()


def test_a_rule_that_tells_its_closed_form_is_replayed_like_ours(
    cli: CommandLine, tiny: Tiny, theirs: str
) -> None:
    """Chains of a draft in closed form, n-grams along the text; one that tells nothing is not."""
    assert cli("record", *tiny.options("recording", "sampling.temperature=1")).status == 0
    rules = (f"{theirs}.Replayed", "verification=match", f"{theirs}.Naive")
    proposers = ("proposer=draft_model", "proposer=ngram")
    arms = ",".join(f"'{proposer} {rule}'" for proposer in proposers for rule in rules)
    draft = f"options=['draft.path={tiny.draft}']"
    grid = ("recording=recording", "output=replayed", draft, "grid.proposer=[]", f"arms=[{arms}]")
    ended = cli("replay", *grid)
    assert ended.status == 0, ended.err
    assert "verification=outside_rules.Naive: single candidates of this proposer" in ended.out
    found = pd.read_csv("replayed/summary.csv")["block_efficiency"].tolist()
    assert len(found) == 4
    assert len({round(value, 9) for value in found}) == 2, "each like `match`"
