"""The places of a batch of texts at one depth of a step, as the nodes that candidates stand at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from specdec.core.closed_form import Note, TextNodes
from specdec.core.sampling import Sampling
from specdec.recording.texts import Text, output_ids
from specdec.replaying.stops import Stops
from specdec.replaying.survival import ahead
from specdec.tree.filtered import Filtered


@dataclass(frozen=True)
class Drawn:
    """How candidates are drawn from a draft's distributions."""

    temperature: float | None  # of the draft; None: the verifier's
    passing: tuple[float, int] | None = None  # of filtered chains: least probability, and top-k
    # How deep the candidates are, where an answer depends on the text's tokens above; else 0.
    depth: int = 0
    note: Note | None = None  # what such an answer wants to know of each token above and its own
    num_paths: int = 1  # of whole paths, if it does


class Places:
    """What draft and verifier say at each of n = B x T places, and the texts' tokens there.

    Distributions of one temperature exist at a time, and of one filter: the last ones asked for.
    """

    def __init__(
        self,
        texts: Sequence[Text],
        depth: int,
        p: Tensor | None,  # [B, T, V]
        logits: Tensor,  # [B, T, V]: the draft's
        sampling: Sampling,
        log_ratios: Callable[[Drawn], Sequence[Tensor]],  # of [B, T]: see `TextNodes`
        notes: Callable[[Drawn], Sequence[Tensor]] = lambda drawn: (),  # of [B, T, m]
        generator: torch.Generator | None = None,
        stops: Stops | None = None,
    ):
        self._texts = texts
        self._stops = stops
        self._sampling = sampling
        self._log_ratios, self._notes = log_ratios, notes
        self._generator = generator
        self._latest: dict[Drawn, Tensor] = {}
        self.shape = logits.shape[:2]
        self.logits = logits.flatten(0, 1)  # [n, V]
        self.token_ids = ahead(output_ids(texts, logits.device), depth).flatten()  # [n]
        # Behind the end of a text anything will do but what is no number.
        log_p = torch.zeros(self.shape, dtype=torch.float64)
        for row, text in enumerate(texts):
            log_p[row, : len(text.log_p)] = torch.tensor(text.log_p, dtype=torch.float64)
        self._log_p = ahead(log_p.to(logits.device), depth).flatten()
        self._p = None if p is None else ahead(p.to(logits.device), depth).flatten(0, 1)

    @property
    def knows_p(self) -> bool:
        """Whether p is known of all tokens."""
        return self._p is not None

    def q(self, drawn: Drawn) -> Tensor:  # [n, V]
        """Return what candidates are drawn from; of filtered ones, what q gives to those shown."""
        plain, passing = Drawn(drawn.temperature), Drawn(drawn.temperature, drawn.passing)
        if plain not in self._latest:
            self._latest.clear()
            self._latest[plain] = self._sampling.at(drawn.temperature).warp(self.logits)
        if passing not in self._latest:
            assert drawn.passing is not None
            q = self._latest[plain]
            self._latest = {plain: q, passing: Filtered.passed(q, *drawn.passing)}
        return self._latest[passing]

    def nodes(self, drawn: Drawn, num_children: int, needs_p: bool) -> TextNodes:
        """Return the places as nodes; closed forms get p only if they say that they read it."""
        assert self.knows_p or not needs_p, "p of other tokens is wanted"
        log_ratios = self._log_ratios(drawn) if drawn.depth else ()
        return TextNodes(
            self.q(drawn),
            self.token_ids,
            self._log_p,
            num_children,
            self._p if needs_p else None,
            [log_ratio.flatten() for log_ratio in log_ratios],
            self._generator,
            [note.flatten(0, 1) for note in (self._notes(drawn) if drawn.depth else ())],
            drawn.num_paths,
        )

    @cached_property
    def is_end(self) -> Tensor:  # [n or 1, V] bool
        """Mark the tokens that end the texts here."""
        assert self._stops is not None
        return self._stops.behind(self._texts, self.logits.device).flatten(0, 1)
