"""What steps cost: curves from the steps that were timed, and seconds of those to come."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specdec.core.errors import UserError
from specdec.core.outcome import Outcome
from specdec.core.trace import PlainSteps, Step, Trace
from specdec.core.values import Draw
from specdec.replaying.cost_fitting import MIN_STEPS, Filler, Timed, curve, fitted
from specdec.replaying.costs import (
    DRAWN,
    LIKELIEST,
    Costs,
    Curve,
    DraftCosts,
    ProposerKey,
    TreeShape,
    costs_of_file,
    read_costs,
    with_seconds,
)
from specdec.tree.chain import Chain
from specdec.tree.dynamic import Dynamic
from specdec.tree.filtered import Filtered
from specdec.tree.sampled import Sampled
from specdec.tree.sparse import Sparse

FINGERPRINTS = {"verifier": {"config": "c", "dtype": "float32", "path": "mine"}}
DRAFT = ProposerKey("draft_model mine", "0123")
NONE = ProposerKey("none", "4567")


def costs() -> Costs:
    levels = {DRAWN: Curve((1, 4), (1.0, 4.0)), LIKELIEST: Curve((1, 4), (0.5, 2.0))}
    draft = DraftCosts(DRAFT.name, 10.0, levels, 0.9, Curve((1, 5), (0.1, 0.5)))
    plain = DraftCosts(NONE.name, 0.0, {}, 1.0, Curve((1,), (0.1,)))
    return Costs(
        FINGERPRINTS,
        Curve((1, 2, 5), (100.0, 110.0, 140.0)),
        Curve((3, 5), (200.0, 240.0)),
        {DRAFT.known_by: draft, NONE.known_by: plain},
    )


def test_a_curve_is_level_below_its_points_and_goes_on_beyond() -> None:
    found = Curve((2, 4, 8), (1.0, 3.0, 5.0))
    assert [found.at(size) for size in (1, 2, 3, 4, 6, 8, 10)] == [1, 1, 2, 3, 4, 5, 6]
    assert Curve((4,), (7.0,)).at(100) == 7
    assert Curve((1, 2), (3.0, 2.0)).at(9) == 2  # noise that falls does not go on


def test_parents_are_the_inner_nodes_of_each_level() -> None:
    assert Chain(3).parents == [1, 1, 1]
    assert Sparse([[0, 0], [1, 0], [2]]).parents == [1, 2]
    assert list(Dynamic(num_nodes=5, max_depth=3, beam=2).parents) == [1, 2, 2]
    tree = Sampled([2, 2, 1], "iid")
    assert tree.draw is Draw.IID
    assert tree.parents == [1, 2, 4]


def test_a_step_is_the_sum_of_its_parts() -> None:
    chain = costs().of_step(DRAFT, TreeShape.of(Chain(4), 4, 4))
    assert chain == pytest.approx((10 + 4 * 1.0, 0.9 * 140.0, 0.5))
    tree = costs().of_step(DRAFT, TreeShape.of(Sparse([[0, 0], [1, 0]]), 4, 2))
    assert tree == pytest.approx((10 + 0.5 + 1.0, 0.9 * 240.0, 0.5))
    assert costs().of_step(NONE, TreeShape.of(None, 0, 0)) == (0, 100, 0.1)


def test_steps_are_shorter_where_a_text_ends() -> None:
    found = costs().of_tree(DRAFT, Chain(2))
    assert found is not None
    assert [step.propose for step in found] == [0, 11, 12]
    assert [step.verify for step in found] == pytest.approx([100, 99, 108])
    assert costs().of_tree(DRAFT, Filtered(2)) is None  # the draft decides how many there are
    assert sum(costs().of_largest(DRAFT, Chain(2))) == sum(found[-1])


def step(drafted: int, depth: int, *, scale: float = 1.0) -> Step:
    return Step(
        drafted=drafted,
        depth=depth,
        accepted=0,
        emitted=1,
        outcome=Outcome.RECOVERED,
        overlap=(),
        draft_calls=depth,
        propose_seconds=scale,
        verify_seconds=scale,
        other_seconds=scale,
    )


def test_traces_get_the_seconds_of_their_steps() -> None:
    trace = Trace("a", "", 0, 3, (1, 2), "", "length", 0.0, (step(0, 0), step(2, 2)))
    (timed,), clock = with_seconds([trace], costs(), DRAFT, Chain(2))
    first, second = timed.steps
    assert (first.propose_seconds, first.verify_seconds) == (0, 100)
    assert (second.propose_seconds, second.verify_seconds) == pytest.approx((12, 108))
    assert clock == [PlainSteps("a", 0, 1, 100.0, 100.1, 2)]


def test_no_step_is_predicted_to_be_cheaper_than_one_of_one_token() -> None:
    """Costs that say so by their noise would be a speedup above tau."""
    known = costs()
    warm, ngram = (
        DraftCosts("ngram", 0.0, {}, 0.7, Curve((2,), (0.01,))),
        ProposerKey("ngram", "89"),
    )
    known = replace(known, drafts={**known.drafts, ngram.known_by: warm})
    for gamma in (1, 2, 3):
        shape = TreeShape.of(None, gamma, gamma)
        assert sum(known.of_step(ngram, shape)) == pytest.approx(sum(known.plain))
    step = known.of_step(ngram, TreeShape.of(None, 8, 8))
    assert step.verify == pytest.approx(0.7 * 180), "what costs more is left as it is"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"start": -1.0}, "start -1.0"),
        ({"verify": 0.4}, "verify 0.4, expected 0.7 at least"),
        ({"verify": math.nan}, "verify nan"),
        ({"level": {DRAWN: Curve((1,), (-2.0,))}}, "a level, drawn: seconds below 0"),
        ({"chain": Curve((1, 2), (2.0, 1.0))}, "chain: more tokens take less time"),
        ({"tree": Curve((3,), (math.inf,))}, "tree: seconds below 0"),
        ({"drafts": {}}, "nothing about plain steps"),
    ],
)
def test_costs_that_no_machine_has_are_refused(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    known = costs()
    if change.keys() <= {"chain", "tree", "drafts"}:
        known = replace(known, **change)
    else:
        wrong = replace(known.drafts[DRAFT.known_by], **change)
        known = replace(known, drafts={**known.drafts, DRAFT.known_by: wrong})
    known.write(tmp_path / "costs.json")
    with pytest.raises(UserError, match=f"{reason}.*measure anew"):
        read_costs(tmp_path / "costs.json")


def test_what_went_into_the_seconds_is_found_again() -> None:
    """Steps whose seconds are made by known costs; medians do not mind a stall now and then."""
    known = costs()
    shapes = [(Chain(1), 1, 1), (Chain(4), 4, 4), (Sampled([4, 1], "without_replacement"), 8, 2)]
    timed = [Timed(NONE, (), "", steps_of(known, NONE, None, 0, 0))]
    for tokens in (1, 2, 5):
        steps = steps_of(known, NONE, None, tokens - 1, tokens - 1)
        timed.append(Timed(None, (), "", steps))
    for tokens in (3, 5, 9):
        timed.append(Timed(None, (), "", steps_of(known, NONE, None, tokens - 1, 1)))
    for tree, drafted, depth in shapes:
        steps = steps_of(known, DRAFT, tree, drafted, depth)
        timed.append(Timed(DRAFT, tuple(tree.parents), DRAWN, steps))
    found = fitted(timed, FINGERPRINTS)
    assert found.chain.at(5) == pytest.approx(140)
    assert found.tree.at(5) == pytest.approx(240)
    draft = found.drafts[DRAFT.known_by]
    assert draft.start == pytest.approx(10)
    assert draft.level[DRAWN].seconds == pytest.approx((1.0, 4.0))
    assert draft.verify == pytest.approx(0.9)
    for tree, drafted, depth in shapes:
        shape = TreeShape.of(tree, drafted, depth)
        assert found.of_step(DRAFT, shape) == pytest.approx(known.of_step(DRAFT, shape))


def test_levels_that_nobody_timed_often_enough_are_not_free() -> None:
    known = costs()
    plain = [Timed(None, (), "", steps_of(known, NONE, None, n, d)) for n, d in ((0, 0), (4, 1))]
    narrow, wide = Chain(2), Sampled([4, 1], "without_replacement")
    timed = [Timed(DRAFT, (1, 1), DRAWN, steps_of(known, DRAFT, narrow, 2, 2))]
    timed.append(Timed(DRAFT, (1, 4), DRAWN, steps_of(known, DRAFT, wide, 8, 2)[:2]))
    draft = fitted([*plain, *timed], FINGERPRINTS).drafts[DRAFT.known_by]
    assert draft.level[DRAWN].sizes == (1,)
    assert draft.start + 2 * draft.level[DRAWN].at(4) == pytest.approx(12)


def steps_of(
    known: Costs, draft: ProposerKey, tree: Chain | Sampled | None, drafted: int, depth: int
) -> list[Step]:
    seconds = known.of_step(draft, TreeShape.of(tree, drafted, depth))
    usual = replace(
        step(drafted, depth),
        propose_seconds=seconds.propose,
        verify_seconds=seconds.verify,
        other_seconds=seconds.other,
    )
    return [usual] * MIN_STEPS + [step(drafted, depth, scale=1e6)]


def test_more_tokens_never_cost_less() -> None:
    pairs = [(size, seconds) for size, seconds in ((1, 1.0), (2, 3.0), (3, 2.0))] * MIN_STEPS
    assert curve(pairs).seconds == pytest.approx((1.0, 2.5, 2.5))


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(UserError, match="no size was timed"):
        curve([(1, 1.0)] * (MIN_STEPS - 1))


def test_a_filler_is_as_large_as_asked_for() -> None:
    assert Filler(4, branches=False).max_depth == 4
    assert Filler(4, branches=True).max_depth == 1
    assert Filler(0, branches=True).max_depth == 0


def test_costs_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    costs().write(file)
    assert read_costs(file) == costs()
    assert costs_of_file(str(file), {"config": "c", "dtype": "float32"}) == costs()


@pytest.mark.parametrize(("name", "value"), [("config", "other"), ("dtype", "bfloat16")])
def test_costs_of_another_verifier_are_refused(tmp_path: Path, name: str, value: str) -> None:
    costs().write(tmp_path / "costs.json")
    fingerprint = {"config": "c", "dtype": "float32", name: value}
    with pytest.raises(UserError, match=f"measured on another verifier, 'mine' \\({name} differ"):
        costs_of_file(str(tmp_path / "costs.json"), fingerprint)


def test_a_proposer_that_was_not_measured_is_named() -> None:
    with pytest.raises(UserError, match="nothing about ngram; there are draft_model mine, none"):
        costs().require(ProposerKey("ngram", "89ab"), "costs.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        ("{", "not what specdec-costs writes"),
        (json.dumps({"version": 7}), "version 7"),
        (json.dumps({"version": 2}), "no 'circumstances'"),
    ],
)
def test_damaged_costs_are_refused(tmp_path: Path, content: str | None, reason: str) -> None:
    file = tmp_path / "costs.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=reason):
        read_costs(file)


def test_seconds_that_were_changed_are_refused(tmp_path: Path) -> None:
    """They are possible, and no machine ever took them."""
    file = tmp_path / "costs.json"
    costs().write(file)
    row = json.loads(file.read_text())
    row["chain"]["seconds"][-1] *= 2
    file.write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"has changed since.*measure anew"):
        read_costs(file)
