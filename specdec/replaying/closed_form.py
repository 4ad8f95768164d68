"""Replay in closed form: candidates of a fixed shape, whose distributions the text decides."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from specdec.core.protocols import CausalLM
from specdec.core.sampling import Sampling
from specdec.core.values import Draw
from specdec.decoding.stopping import Stopping
from specdec.lm.generation import end_ids_of, heeded
from specdec.recording.texts import Text, batches, logits_along, processed
from specdec.replaying import questions
from specdec.replaying.arm import LIMITED, ClosedArm
from specdec.replaying.draft_distributions import DraftDistributions
from specdec.replaying.expected_steps import Replayed
from specdec.replaying.places import Places
from specdec.replaying.scores import Scores
from specdec.replaying.stops import Stops
from specdec.replaying.submitted import Known, submitted
from specdec.replaying.survival import of_tree
from specdec.tree.fixed import Path
from specdec.verification.odds import ratio

CELLS_AT_ONCE = 1 << 25  # numbers of one tensor of distributions

# The distributions [T, V] that a text was drawn from, given V; None where not all of them is known.
Rows = Callable[[Text, int], Tensor | None]


def replay(
    texts: Sequence[Text],
    distributions: DraftDistributions,
    arms: Mapping[str, ClosedArm],
    sampling: Sampling,
    verifier: CausalLM | None,
    vocab_size: int,
    seed: int = 0,
    rows: Rows | None = None,
    stopping: Stopping | None = None,
) -> dict[str, list[Replayed]]:
    """Replay all arms that draw from the same distributions, in one pass over the texts.

    Only arms that must know p of tokens that the text does not have ask for `rows`, such as a
    recording has, and let the `verifier` read texts of which there are none. Nothing is submitted
    below an end token or a stop string of `stopping`; a text that another one ended says so itself.
    """
    stopping = stopping or Stopping(end_ids=end_ids_of(verifier))
    sampling = heeded(sampling, verifier, stopping.end_ids)
    found: dict[str, list[Replayed]] = {name: [] for name in arms}
    limit = max(1, CELLS_AT_ONCE // vocab_size)
    stops = Stops.of(texts, stopping, vocab_size)
    for number, batch in enumerate(batches(texts, limit)):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        with torch.inference_mode():
            scores = score(
                batch,
                distributions,
                list(arms.values()),
                sampling,
                verifier,
                vocab_size,
                generator,
                rows,
                stops,
            )
        for name, arm in arms.items():
            survival = survival_of(arm, scores)
            first = from_first(batch, distributions, survival)
            reads_path = distributions.reads_path or bool(sampling.processors)
            known = _known_of(arm, scores, batch, sampling, survival, stops, reads_path)
            found[name].append(Replayed.of(batch, survival, first, submitted(arm.tree, known)))
    return found


def from_first(
    texts: Sequence[Text], distributions: DraftDistributions, survival: Tensor
) -> Tensor | None:  # [B, T]
    """Return the depth of the candidates: none before the distributions begin."""
    firsts = [distributions.first_start(text) for text in texts]
    if not any(firsts):
        return None
    place = torch.arange(survival.shape[1], device=survival.device)
    begun = place >= torch.tensor(firsts, device=survival.device)[:, None]
    return begun * (survival.shape[2] - 1)


def score(
    texts: Sequence[Text],
    distributions: DraftDistributions,
    arms: Sequence[ClosedArm],
    sampling: Sampling,
    verifier: CausalLM | None,
    vocab_size: int,
    generator: torch.Generator | None = None,
    rows: Rows | None = None,
    stops: Stops | None = None,
) -> Scores:
    """Answer all questions of all arms along a batch of texts."""
    wanted = questions.questions(arms, distributions.num_depths, stops is not None and stops.some)
    p = None
    if any(question.needs_p for several in wanted.values() for question in several):
        p = _known(texts, rows, vocab_size)
        if p is None and verifier is not None:
            logits = logits_along(verifier, texts, vocab_size)
            p = sampling.warp(processed(texts, sampling, logits))
    scores = Scores(distributions.num_depths)
    stops_early = any(arm.tree.min_confidence > 0 for arm in arms)
    for depth, logits in enumerate(distributions.along(texts, vocab_size), start=1):
        if depth not in wanted:
            break
        if stops_early:
            scores.note_confidence(depth, logits.float().softmax(dim=-1).amax(dim=-1))
        said = processed(texts, sampling, logits, depth)
        above = (scores.log_ratios, scores.notes)
        places = Places(texts, depth, p, said, sampling, *above, generator, stops)
        scores.answer(wanted[depth], depth, places)
    return scores


def _known(texts: Sequence[Text], rows: Rows | None, vocab_size: int) -> Tensor | None:
    """Return p [B, T, V] along the texts, 0 behind their ends, if it is known of all of them."""
    if rows is None:
        return None
    found: list[Tensor] = []
    for text in texts:
        probs = rows(text, vocab_size)
        if probs is None:
            return None
        found.append(probs)
    return pad_sequence(found, batch_first=True)


def _known_of(
    arm: ClosedArm,
    scores: Scores,
    texts: Sequence[Text],
    sampling: Sampling,
    survival: Tensor,  # [B, T, D + 1]
    stops: Stops | None,
    reads_path: bool,
) -> Known:
    """Collect what decides on the candidates of an arm."""
    depths = range(1, arm.tree.max_depth + 1)
    known = [_column(scores.known(questions.of_submitted(arm, depth), depth)) for depth in depths]
    like = scores.at(questions.of_acceptance(arm, 1), 1)
    stuck = scores.known(questions.of_stuck(arm, 1), 1)
    is_limited, is_filtered = arm.tree.draw in LIMITED, arm.tree.draw is Draw.FILTERED
    is_full = not arm.may_lack(sampling)
    if is_limited and is_full:  # a draft that has tokens enough along the texts is taken
        is_full = all(  # to have them beside the texts, too
            bool((each >= arm.width(depth)).where(_inside(texts, depth, each), True).all())
            for depth, each in zip(depths, known, strict=True)
            if each is not None
        )
    return Known(
        sure=[_goes_on(arm, scores, depth, like) for depth in depths],
        passes=known if is_filtered else None,
        support=known if is_limited else [None for _ in depths],
        is_full=is_full,
        ends=stops is None or stops.some,
        ended=_ended(arm, scores, texts, stops, reads_path),
        stuck=None if stuck is None else ratio(stuck[..., 0], survival[..., 1]),
        reads_path=reads_path,
    )


def _ended(
    arm: ClosedArm, scores: Scores, texts: Sequence[Text], stops: Stops | None, reads_path: bool
) -> dict[Path, Tensor]:  # of [B, T]
    """Return P(a candidate ends the text | the text) of those with children, where it is known."""
    inner = sorted({path[:-1] for path in arm.tree.nodes} - {()})
    answers: list[Tensor] = []
    for depth in range(1, arm.tree.max_depth):
        answer = scores.known(questions.of_ends(arm, depth), depth)
        if answer is None:
            return {}
        answers.append(answer)
    if arm.tree.draw is not Draw.DETERMINISTIC:
        known = [path for path in inner if path[0] < answers[0].shape[-1]]
        return {path: answers[0][..., path[0]] for path in known}
    assert stops is not None
    # Behind the text the likeliest are known, and below them where no distribution looks at them.
    inner = [path for path in inner if len(path) == 1 or not reads_path]
    ids = [torch.stack([answers[d][..., k] for d, k in enumerate(path)], dim=-1) for path in inner]
    return dict(zip(inner, stops.along(texts, ids), strict=True))


def _column(answer: Tensor | None) -> Tensor | None:  # [B, T, 1] -> [B, T]
    return None if answer is None else answer[..., 0]


def _inside(texts: Sequence[Text], depth: int, like: Tensor) -> Tensor:  # [B, T] bool
    """Mark the places from which a text goes on to a depth."""
    place = torch.arange(like.shape[1], device=like.device)
    lengths = torch.tensor([[len(text.output_ids)] for text in texts], device=like.device)
    return place + depth <= lengths


def survival_of(arm: ClosedArm, scores: Scores) -> Tensor:  # [B, T, D + 1]
    """Put the answers of one arm together."""
    depths = range(1, arm.tree.max_depth + 1)
    shares: list[Tensor] = []
    for depth in depths:
        answer = scores.at(questions.of_acceptance(arm, depth), depth)
        shares.append(answer * _goes_on(arm, scores, depth, answer)[..., None])
    return of_tree(arm.tree.nodes, shares)


def _goes_on(arm: ClosedArm, scores: Scores, depth: int, like: Tensor) -> Tensor:  # [B, T] bool
    if arm.tree.min_confidence > 0:
        return scores.is_confident(arm.tree.min_confidence, depth)
    return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
