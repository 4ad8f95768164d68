"""What steps say of a verifier's experts: how many a forward touched, and which each token took."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.on_host import integers
from specdec.core.protocols import CausalLM, Forward
from specdec.core.trace import Step
from specdec.core.tree import ROOT
from specdec.core.values import Proposal, Verdict
from specdec.decoding.request import Flight
from specdec.lm.hf import HFCausalLM
from specdec.lm.routing import Routing, distinct


def routing_of(verifier: CausalLM) -> Routing:
    """Watch a verifier's experts.

    Raises:
        UserError: it has none, or none that can be counted.
    """
    if not isinstance(verifier, HFCausalLM):
        kind = type(verifier).__name__
        raise UserError(f"experts=True: {kind} is no model of transformers; expected False")
    return Routing(verifier)


def with_experts(
    steps: Sequence[Step],
    in_flight: Sequence[Flight],
    proposals: Sequence[Proposal],
    verdicts: Sequence[Verdict],
    forward: Forward,
    routing: Routing,
) -> list[Step]:
    """Note the experts that the forward of a step touched, all requests in flight together.

    Padding of shorter trees is not counted: nobody needs what it is computed for.
    """
    assert forward.experts is not None
    chosen = forward.experts.cpu()
    rows = zip(chosen, proposals, strict=True)
    real = torch.cat([row[: len(each.tree.token_ids)] for row, each in rows])  # [n, L, k]
    touched = tuple(distinct(real, routing.counts.num_experts))
    return [
        replace(
            step,
            experts=touched,
            forward_tokens=len(real),
            routes=_routes(row, verdict, step) if flight.request.keep_candidates else (),
        )
        for step, flight, row, verdict in zip(steps, in_flight, chosen, verdicts, strict=True)
    ]


def _routes(
    chosen: Tensor, verdict: Verdict, step: Step
) -> tuple[tuple[tuple[int, ...], ...], ...]:  # [M, L, k] -> [A + 1][L][k]
    """Return the experts of the root and of each accepted token, from the smallest number on."""
    path = [ROOT, *verdict.path[: step.accepted]]
    return tuple(
        tuple(tuple(integers(layer)) for layer in token) for token in chosen[path].sort().values
    )
