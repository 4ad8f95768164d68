"""Each token of a text is explained by what stood in its place."""

from specdec.core.outcome import Outcome
from specdec.core.trace import Step, Trace
from specdec.report.token_view import token_view

# Node 1 (10) has children 3 (20) and 4 (21); node 2 (11) has none; 5 (10) is drawn twice.
TREE = ((0, 10), (0, 11), (1, 20), (1, 21), (0, 10))


def make_step(
    accepted: int, emitted: int, outcome: Outcome, candidates: tuple[tuple[int, int], ...] = TREE
) -> Step:
    return Step(5, 2, accepted, emitted, outcome, (), 1, candidates=candidates)


def rows(*steps: Step, output_ids: tuple[int, ...]) -> list[tuple[str, str, int, tuple[str, ...]]]:
    trace = Trace("p", "any", 0, 3, output_ids, "text", "length", 0.0, steps)
    view = token_view(trace, "the prompt", lambda token: f"<{token}>")
    assert (view["prompt_id"], view["turn"], view["prompt"]) == ("p", 0, "the prompt")
    return [(t["text"], t["kind"], t["depth"], t["rejected"]) for t in view["tokens"]]


def test_accepted_tokens_show_their_siblings() -> None:
    assert rows(make_step(2, 3, Outcome.BONUS), output_ids=(10, 21, 7)) == [
        ("<10>", "accepted", 1, ("<11>",)),
        ("<21>", "accepted", 2, ("<20>",)),
        ("<7>", "bonus", 3, ()),
    ]


def test_the_verifiers_token_shows_all_that_it_replaces() -> None:
    assert rows(make_step(0, 1, Outcome.RECOVERED), output_ids=(7,)) == [
        ("<7>", "recovered", 1, ("<10>", "<11>"))
    ]
    assert rows(make_step(1, 2, Outcome.RECOVERED), output_ids=(10, 7)) == [
        ("<10>", "accepted", 1, ("<11>",)),
        ("<7>", "recovered", 2, ("<20>", "<21>")),
    ]


def test_a_text_that_ends_within_the_candidates_has_no_token_of_the_verifiers() -> None:
    assert rows(make_step(1, 1, Outcome.ENDED), output_ids=(11,)) == [
        ("<11>", "accepted", 1, ("<10>",))
    ]


def test_steps_follow_each_other() -> None:
    steps = make_step(0, 1, Outcome.BONUS, candidates=()), make_step(1, 2, Outcome.RECOVERED)
    found = rows(*steps, output_ids=(5, 11, 6))
    assert [(text, kind, depth) for text, kind, depth, _ in found] == [
        ("<5>", "bonus", 1),
        ("<11>", "accepted", 1),
        ("<6>", "recovered", 2),
    ]


def test_candidates_survive_the_file() -> None:
    steps = (make_step(2, 3, Outcome.BONUS), make_step(0, 1, Outcome.RECOVERED, candidates=()))
    trace = Trace("p", "any", 0, 3, (10, 21, 7, 8), "text", "length", 0.0, steps)
    row = trace.to_row()
    assert "candidates" not in row["steps"][1], "most steps have none, and need not say so"
    assert Trace.from_row(row) == trace
