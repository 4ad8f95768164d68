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
from specdec.replaying.cost_fitting import MIN_STEPS, Timed, curve, fitted
from specdec.replaying.costs import (
    DRAWN,
    LIKELIEST,
    Costs,
    DraftCosts,
    ProposerKey,
    TreeShape,
    with_seconds,
)
from specdec.replaying.costs_file import costs_of_file, read_costs, write_costs
from specdec.replaying.curves import Curve, Surface
from specdec.replaying.forwards import Forwards, Shape, TimedForward
from specdec.tree.chain import Chain
from specdec.tree.dynamic import Dynamic
from specdec.tree.sampled import Sampled
from specdec.tree.sparse import Sparse

FINGERPRINTS = {"verifier": {"config": "c", "dtype": "float32", "path": "mine"}}
DRAFT = ProposerKey("draft_model mine", "0123")
NONE = ProposerKey("none", "4567")


# Milliseconds over tokens and context, of both requests of a batch of two.
CHAIN = {100: {1: 200.0, 2: 220.0, 5: 280.0}, 200: {1: 300.0, 2: 340.0, 5: 400.0}}
TREE = {100: {3: 400.0, 5: 480.0}, 200: {3: 500.0, 5: 600.0}}
BEHIND = 100  # cells, where a forward of one request takes half of the first rows


def forwards() -> Forwards:
    points = [
        TimedForward(Shape(branches, number, context), seconds, 1000)
        for branches, grid in ((False, CHAIN), (True, TREE))
        for context, row in grid.items()
        for number, seconds in row.items()
    ]
    return Forwards(2, 10.0, tuple(points))


def costs() -> Costs:
    levels = {DRAWN: Curve((1, 4), (1.0, 4.0)), LIKELIEST: Curve((1, 4), (0.5, 2.0))}
    draft = DraftCosts(DRAFT.name, 10.0, levels, 0.9, Curve((1, 5), (0.1, 0.5)))
    plain = DraftCosts(NONE.name, 0.0, {}, 1.0, Curve((1,), (0.1,)))
    return Costs(FINGERPRINTS, forwards(), {DRAFT.known_by: draft, NONE.known_by: plain})


def test_a_curve_is_level_below_its_points_and_goes_on_beyond() -> None:
    found = Curve((2, 4, 8), (1.0, 3.0, 5.0))
    assert [found.at(size) for size in (1, 2, 3, 4, 6, 8, 10)] == [1, 1, 2, 3, 4, 5, 6]
    assert Curve((4,), (7.0,)).at(100) == 7
    assert Curve((1, 2), (3.0, 2.0)).at(9) == 2  # noise that falls does not go on


def test_between_points_of_a_grid_seconds_lie_on_lines() -> None:
    found = Surface((100, 200), (Curve((1, 3), (1.0, 2.0)), Curve((1, 3), (3.0, 8.0))))
    assert [found.at(1, context) for context in (50, 100, 150, 200, 300)] == [1, 1, 2, 3, 5]
    assert [found.at(2, context) for context in (100, 150, 200)] == [1.5, 3.5, 5.5]
    assert found.at(5, 200) == 13  # both last lines go on
    assert found.along(3, [100, 150, 200]).tolist() == [2, 5, 8]
    assert Surface((64,), (Curve((1,), (7.0,)),)).at(9, 9000) == 7


def test_neither_more_tokens_nor_more_context_take_less() -> None:
    noisy = {(1, 10): 2.0, (2, 10): 1.0, (1, 20): 1.0, (2, 20): 3.0}
    found = Surface.of(noisy)
    rows = [curve.seconds for curve in found.curves]
    assert rows[0] == pytest.approx((1.25, 1.5))
    assert rows[1] == pytest.approx((1.25, 3.0))


def test_a_forward_is_held_against_what_it_must_move() -> None:
    found = forwards()
    point = found.points[0]
    assert (found.floor(point), found.ratio(point)) == (100, 2)
    row = found.to_row()["points"][0]
    assert (row["floor_seconds"], row["ratio"], row["num_bytes"]) == (100, 2, 1000)
    assert (row["num_tokens"], row["context"], row["branches"]) == (1, 100, False)


def test_parents_are_the_inner_nodes_of_each_level() -> None:
    assert Chain(3).parents == [1, 1, 1]
    assert Sparse([[0, 0], [1, 0], [2]]).parents == [1, 2]
    assert list(Dynamic(num_nodes=5, max_depth=3, beam=2).parents) == [1, 2, 2]
    tree = Sampled([2, 2, 1], "iid")
    assert tree.draw is Draw.IID
    assert tree.parents == [1, 2, 4]


def test_a_step_is_the_sum_of_its_parts() -> None:
    chain = costs().of_step(DRAFT, TreeShape.of(Chain(4), 4, 4), BEHIND)
    assert chain == pytest.approx((10 + 4 * 1.0, 0.9 * 140.0, 0.5))
    tree = costs().of_step(DRAFT, TreeShape.of(Sparse([[0, 0], [1, 0]]), 4, 2), BEHIND)
    assert tree == pytest.approx((10 + 0.5 + 1.0, 0.9 * 240.0, 0.5))
    assert costs().of_step(NONE, TreeShape.of(None, 0, 0), BEHIND) == (0, 100, 0.1)


def test_a_step_costs_what_its_context_makes_of_it() -> None:
    """Halfway between two contexts a chain of 5 takes half of 280 and 400 for each of two."""
    shape = TreeShape.of(Chain(4), 4, 4)
    found = costs().along(DRAFT, shape, [100, 150, 200, 300])
    assert found[:, 1].tolist() == pytest.approx([0.9 * each for each in (140, 170, 200, 260)])
    assert found[:, 0].tolist() == [14] * 4, "what has no model is not taken to grow"
    assert costs().plain_along([150, 300])[:, 1].tolist() == [125, 200]


def test_a_draft_model_grows_with_the_context_too() -> None:
    growing = replace(
        costs().drafts[DRAFT.known_by], growth=Curve((0, 100), (2.0, 3.0)), context=50
    )
    known = replace(costs(), drafts={**costs().drafts, DRAFT.known_by: growing})
    found = known.along(DRAFT, TreeShape.of(Chain(4), 4, 4), [0, 50, 150])
    assert found[:, 0].tolist() == pytest.approx([14 - 4 * 0.5, 14, 14 + 4 * 1.0])


def test_plain_steps_have_a_factor_of_their_own() -> None:
    slow = replace(costs().drafts[NONE.known_by], verify=1.5)
    known = replace(costs(), drafts={**costs().drafts, NONE.known_by: slow})
    assert known.of_step(NONE, TreeShape.of(None, 0, 0), BEHIND).verify == 150
    assert known.of_step(DRAFT, TreeShape.of(Chain(4), 0, 0), BEHIND).verify == 150


def test_steps_are_shorter_where_a_text_ends() -> None:
    found = costs().of_tree(DRAFT, Chain(2), [BEHIND, 200])  # [C, D + 1, 3]
    assert found[0, :, 0].tolist() == [0, 11, 12]
    assert found[0, :, 1].tolist() == pytest.approx([100, 99, 108])
    assert found[1, :, 1].tolist() == pytest.approx([150, 153, 162])
    largest = costs().of_largest(DRAFT, Chain(2), BEHIND)
    assert sum(largest) == pytest.approx(found[0, -1].sum())
    assert costs().of_largest(DRAFT, None, BEHIND).verify == 100


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
    """The prompt has 151 tokens, so that 150 cells are cached when the first step begins."""
    trace = Trace("a", "", 0, 151, (1, 2), "", "length", 0.0, (step(0, 0), step(2, 2)))
    assert trace.contexts == [150, 151]
    (timed,), clock = with_seconds([trace], costs(), DRAFT, Chain(2))
    first, second = timed.steps
    assert (first.propose_seconds, first.verify_seconds) == pytest.approx((0, 125))
    # Three tokens behind 151: 120 and 180 of the two contexts, of which it is beyond the middle.
    expected = 0.9 * (120 + 0.51 * 60)
    assert (second.propose_seconds, second.verify_seconds) == pytest.approx((12, expected))
    (plain,) = clock
    assert plain == PlainSteps("a", 0, 2, plain.verify_seconds, plain.decode_seconds, 2)
    assert plain.verify_seconds == pytest.approx(125 + 125.5)
    assert plain.decode_seconds == pytest.approx(125.1 + 125.6)


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
        for context in (BEHIND, 170):
            plain = known.plain_along([context]).sum()
            assert sum(known.of_step(ngram, shape, context)) == pytest.approx(plain)
    step = known.of_step(ngram, TreeShape.of(None, 8, 8), BEHIND)
    assert step.verify == pytest.approx(0.7 * 180), "what costs more is left as it is"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"start": -1.0}, "start -1.0"),
        ({"verify": 0.4}, "verify 0.4, expected 0.7 at least"),
        ({"verify": math.nan}, "verify nan"),
        ({"level": {DRAWN: Curve((1,), (-2.0,))}}, "a level, drawn: seconds below 0"),
        ({"growth": Curve((1,), (-1.0,))}, "a token of its model: seconds below 0"),
        ({"context": -2.0}, "context -2.0"),
        ({"forwards": replace(forwards(), batch=0)}, "a number is not above 0"),
        ({"forwards": replace(forwards(), points=forwards().points[1:])}, "behind every context"),
        ({"forwards": replace(forwards(), points=forwards().points[:6])}, "behind every context"),
        ({"drafts": {}}, "nothing about plain steps"),
    ],
)
def test_costs_that_no_machine_has_are_refused(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    known = costs()
    if change.keys() <= {"forwards", "drafts"}:
        known = replace(known, **change)
    else:
        wrong = replace(known.drafts[DRAFT.known_by], **change)
        known = replace(known, drafts={**known.drafts, DRAFT.known_by: wrong})
    write_costs(known, tmp_path / "costs.json")
    with pytest.raises(UserError, match=f"{reason}.*measure anew"):
        read_costs(tmp_path / "costs.json")


def test_what_went_into_the_seconds_is_found_again() -> None:
    """Steps whose seconds are made by known costs; medians do not mind a stall now and then."""
    known = costs()
    shapes = [(Chain(1), 1, 1), (Chain(4), 4, 4), (Sampled([4, 1], "without_replacement"), 8, 2)]
    timed = [timed_as(NONE, (), steps_of(known, NONE, None, 0, 0))]
    for tree, drafted, depth in shapes:
        steps = steps_of(known, DRAFT, tree, drafted, depth)
        timed.append(timed_as(DRAFT, tuple(tree.parents), steps))
    found = fitted(known.forwards, timed, {}, FINGERPRINTS)
    draft = found.drafts[DRAFT.known_by]
    assert draft.start == pytest.approx(10)
    assert draft.level[DRAWN].seconds == pytest.approx((1.0, 4.0))
    assert draft.verify == pytest.approx(0.9)
    assert draft.context == 150
    assert found.drafts[NONE.known_by].verify == pytest.approx(1.0)
    for tree, drafted, depth in shapes:
        shape = TreeShape.of(tree, drafted, depth)
        assert found.of_step(DRAFT, shape, 120) == pytest.approx(known.of_step(DRAFT, shape, 120))


def test_forwards_among_steps_are_held_to_those_of_their_own_context() -> None:
    """Steps of one arm behind two contexts, 1.2 times what the grid says at each."""
    known = costs()
    both: list[Step] = []
    for verify in (125.0, 150.0):
        both += [replace(step(0, 0), verify_seconds=1.2 * verify)] * MIN_STEPS
    contexts = [150] * MIN_STEPS + [200] * MIN_STEPS
    found = fitted(known.forwards, [Timed(NONE, (), "", both, contexts)], {}, FINGERPRINTS)
    assert found.drafts[NONE.known_by].verify == pytest.approx(1.2)


def test_levels_that_nobody_timed_often_enough_are_not_free() -> None:
    known = costs()
    narrow, wide = Chain(2), Sampled([4, 1], "without_replacement")
    timed = [timed_as(DRAFT, (1, 1), steps_of(known, DRAFT, narrow, 2, 2))]
    timed.append(timed_as(DRAFT, (1, 4), steps_of(known, DRAFT, wide, 8, 2)[:2]))
    draft = fitted(known.forwards, timed, {}, FINGERPRINTS).drafts[DRAFT.known_by]
    assert draft.level[DRAWN].sizes == (1,)
    assert draft.start + 2 * draft.level[DRAWN].at(4) == pytest.approx(12)


def timed_as(draft: ProposerKey, parents: tuple[int, ...], steps: list[Step]) -> Timed:
    return Timed(draft, parents, DRAWN, steps, [150] * len(steps))


def steps_of(
    known: Costs, draft: ProposerKey, tree: Chain | Sampled | None, drafted: int, depth: int
) -> list[Step]:
    seconds = known.of_step(draft, TreeShape.of(tree, drafted, depth), 150)
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


def test_costs_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    write_costs(costs(), file)
    assert read_costs(file) == costs()
    assert costs_of_file(str(file), {"config": "c", "dtype": "float32"}) == costs()


@pytest.mark.parametrize(("name", "value"), [("config", "other"), ("dtype", "bfloat16")])
def test_costs_of_another_verifier_are_refused(tmp_path: Path, name: str, value: str) -> None:
    write_costs(costs(), tmp_path / "costs.json")
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
        (json.dumps({"version": 2}), "version 2, and this reads version 3"),
        (json.dumps({"version": 3}), "no 'drafts'"),
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
    write_costs(costs(), file)
    row = json.loads(file.read_text())
    row["forwards"]["points"][-1]["seconds"] *= 2
    file.write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"has changed since.*measure anew"):
        read_costs(file)
