"""An explanation as lines of text, for people who have never seen speculative decoding."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specdec.results.explanation import Candidate, Decision, ExplainedStep, Explanation, Outlook

WIDTH = 100  # characters of a line
LEAD = (
    "A language model writes one token after the other, and must read all of its weights for each."
    " Here a cheap proposer guesses several tokens ahead; q is its probability of each. The large"
    " model, the verifier, reads all of them in one forward, and so says what it would have written"
    " after each: p. A rule compares both and keeps the beginning of a guess; behind it stands a"
    " token of the verifier's own. Then it goes on from there."
)
LOSSLESS = "lossless: the text has exactly the verifier's distribution"
LOSSY = "lossy: the text has another distribution than the verifier's"
LONGEST_PROMPT, MOST_TOKENS = 300, 24  # characters and tokens of a prompt that are told, its last
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')  # a token, which may hold spaces
UNBROKEN = "\u00a0"  # stands for a space at which no line ends
MARKS = {"accepted": "+", "refused": "x", "out of reach": "."}
OWN = {
    "recovered": "the verifier's own, in place of what was refused",
    "bonus": "a bonus, the verifier's own behind a guess that was kept whole",
    "ended": "the text ends there",
}


def lines_of(found: Explanation) -> Iterator[str]:
    """Yield all of it: the parts, each step, and what they come to."""
    yield from wrap(LEAD, WIDTH)
    yield ""
    yield from _parts(found)
    for number, step in enumerate(found.steps, start=1):
        yield ""
        yield from _step(number, step, found)
    yield ""
    yield f"the text: {quoted(found.text)} ({found.finish_reason})"
    yield sum_of(found)


def percent(share: float | None) -> str:
    """Write a probability so that small ones do not vanish."""
    if share is None:
        return "-"
    value = 100 * share
    if value >= 99.95 or value == 0:
        return f"{value:.0f} %"
    return f"{value:.1f} %" if value >= 0.1 else f"{value:.1g} %"


def quoted(text: str) -> str:
    """Write a text on one line."""
    return repr(text)


def sum_of(found: Explanation) -> str:
    """Say how many tokens a forward of the verifier wrote."""
    if found.block_efficiency is None:
        return "there was nothing to write"
    return (
        f"{len(found.steps)} forwards of the verifier wrote {found.num_emitted} tokens:"
        f" {found.block_efficiency:.2f} each (block efficiency); one token after the other it"
        " would be 1"
    )


def result_of(step: ExplainedStep) -> str:
    """Say what a step added to the text."""
    number = f"One forward, {step.emitted} token{'s' if step.emitted != 1 else ''}."
    if not step.candidates and not step.withheld:
        return f"{step.own}: the verifier's own, since there was no guess. {number}"
    kept = f"{' '.join(step.accepted)} kept" if step.accepted else "nothing kept"
    own = f", then {step.own}: {OWN[step.own_kind]}" if step.own else f"; {OWN['ended']}"
    return f"{kept}{own}. {number}"


def drafting_of(step: ExplainedStep) -> str:
    """Say what the proposer did."""
    if not step.candidates and not step.draft_says:
        return "The proposer puts nothing forward."
    if not step.draft_says:
        return "The proposer gives no probabilities: it copies what may come next."
    calls = step.draft_calls
    times = "" if calls is None else f", in {calls} forward{'s' if calls != 1 else ''} of its own"
    return f"The proposer says what may come next (q){times}; * is a candidate."


def left_out_of(step: ExplainedStep) -> str:
    """Say what was grown for nothing."""
    shown = [*step.left_out, *(["..."] if step.num_left_out > len(step.left_out) else [])]
    return f"{step.num_left_out} more grown, and left out of the tree: {', '.join(shown)}"


def parts_of(found: Explanation) -> list[tuple[str, str]]:
    """Name the prompt, the models and the parts, and say what each is; "" goes on with the last."""
    trees = [] if found.tree is None else [("tree", f"{found.tree.name}: {found.tree.does}")]
    tokens = " ".join(each.text for each in found.prompt_tokens[-MOST_TOKENS:])
    number = len(found.prompt_tokens)
    prompt = found.prompt[-LONGEST_PROMPT:]
    return [
        ("prompt", f"{'... ' if prompt != found.prompt else ''}{quoted(prompt)}"),
        ("its tokens", f"{number}: {'... ' if number > MOST_TOKENS else ''}{tokens}"),
        ("verifier", f"{found.verifier}, {found.sampling}"),
        ("proposer", f"{found.proposer.name}: {found.proposer.does}"),
        *trees,
        ("candidates", found.draw),
        ("rule", f"{found.rule.name}: {found.rule.does}"),
        ("", LOSSLESS if found.lossless else LOSSY),
    ]


def decision_of(each: Decision) -> str:
    """Say what was decided by a number."""
    if each.chance is None:
        return f"{each.number:.3f}: the token that it falls on is {each.answer}"
    return f"{each.number:.3f}, below {each.chance:.3g}? {each.answer}"


def branches(candidates: Sequence[Candidate]) -> Iterator[tuple[int, Candidate]]:
    """Yield a tree's nodes with their depths; each branch ends before the next one begins."""
    children: dict[int, list[Candidate]] = {}
    for each in candidates:
        children.setdefault(each.parent, []).append(each)
    waiting = [(1, each) for each in reversed(children.get(0, []))]
    while waiting:
        depth, each = waiting.pop()
        yield depth, each
        waiting += [(depth + 1, child) for child in reversed(children.get(each.node, []))]


def _parts(found: Explanation) -> Iterator[str]:
    for name, value in parts_of(found):
        yield from _indented(value, f"{name:<12}")


def _step(number: int, step: ExplainedStep, found: Explanation) -> Iterator[str]:
    yield f"step {number}, behind {step.num_tokens} tokens: {quoted(step.before)}"
    yield f"  {drafting_of(step)}"
    yield from _distributions(step.draft_says)
    if step.left_out:
        yield from _indented(left_out_of(step))
    if step.withheld:
        yield "    one more was drawn, and not put forward: it did not pass the filter"
    if step.candidates:
        yield "  The verifier reads the candidates at once:"
        yield from _candidates(step.candidates)
    yield "  The verifier says what may come next (p):"
    yield from _distributions(step.verifier_says)
    if step.decisions:
        yield "  The rule decides, by random numbers between 0 and 1:"
    yield from (f"    {decision_of(each)}" for each in step.decisions)
    yield from _indented(result_of(step), "  => ")


def _distributions(places: Sequence[Outlook]) -> Iterator[str]:
    starts = [" ".join(place.after) or "the text" for place in places]
    width = min(30, max(map(len, starts), default=0))
    for start, place in zip(starts, places, strict=True):
        shown = [
            f"{each.text} {percent(each.probability)}{' *' if each.is_candidate else ''}"
            for each in place.likely
        ]
        rest = place.possible - len(place.likely)
        more = [f"and {rest} more"] if rest else []
        yield from _indented(", ".join([*shown, *more]), f"    after {start[-width:]:<{width}}  ")


def _candidates(candidates: Sequence[Candidate]) -> Iterator[str]:
    rows = [(f"{'  ' * (depth - 1)}{each.text}", each) for depth, each in branches(candidates)]
    width = max(len(text) for text, _ in rows)
    yield f"      {'':<{width}}  {'q':>9}  {'p':>9}"
    for text, each in rows:
        q, p = percent(each.draft), percent(each.verifier)
        yield f"    {MARKS[each.fate]} {text:<{width}}  {q:>9}  {p:>9}  {each.fate}"


def _indented(text: str, start: str = "    ") -> Iterator[str]:
    """Break a text into lines, not within a quoted token, behind `start` and as far in."""
    whole = QUOTED.sub(lambda token: token[0].replace(" ", UNBROKEN), text)
    for line in wrap(
        whole,
        WIDTH,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    ):
        yield line.replace(UNBROKEN, " ")
