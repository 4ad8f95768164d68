"""Which experts the tokens of a forward take, as the layers of a stock model are told.

Families differ in what their routers return, and in how experts are chosen by it: softmax or
sigmoid, before or after the best are taken, with biases, within groups. But all of them hand the
numbers of the chosen experts to the module that holds the weights. That argument is read, so that
nothing is computed a second time and nothing can be chosen otherwise than it was.
"""

import inspect
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from specdec.cache.clear import Clear
from specdec.cache.policy import NONE, CachePolicy
from specdec.core.errors import UserError
from specdec.core.protocols import Forward
from specdec.core.values import Layer
from specdec.lm.expert_counts import ExpertCounts
from specdec.lm.hf import HFCausalLM
from specdec.lm.layer_kinds import is_recurrent
from specdec.runtime.choice import EAGER

# What the experts' modules of transformers call the numbers that they are given, [tokens, k].
CHOSEN = ("top_k_index", "router_indices", "selected_experts")


class ExpertLayer(NamedTuple):
    """The experts of one layer, and which argument says who is chosen."""

    module: nn.Module
    name: str
    place: int  # among positional arguments


def require_experts(option: str, config: PreTrainedConfig) -> ExpertCounts:
    """Refuse a dense model, and one whose steps read more than their own tokens.

    Raises:
        UserError: it has no experts, or recurrent layers; the message begins with `option`.
    """
    counts = ExpertCounts.of(config)
    if counts is None:
        raise UserError(f"{option}: {config.model_type} has no experts to count; expected false")
    if is_recurrent(config):
        reason = "reads some tokens once more, since its states cannot be rewound"
        raise UserError(f"{option}: {config.model_type} {reason}; expected false")
    return counts


def require_plain_steps(option: str, runtime: str, cache: object) -> None:
    """Refuse ways to read a step that are not one forward of the model's own code over its tokens.

    Raises:
        UserError: it is one of these; the message begins with `option`.
    """
    if runtime != EAGER:
        raise UserError(
            f"{option}: experts are counted by runtime={EAGER} alone, not by {runtime!r}"
        )
    limits = (cache.max_tokens, cache.max_bytes) if isinstance(cache, CachePolicy) else ()
    clears = isinstance(cache, Clear) and any(limit is not None for limit in limits)
    if cache == NONE or clears:
        name = "cache=clear" if clears else "verifier.cache=none"
        raise UserError(f"{option}: with {name} a step may read more than its own tokens")


class Routing:
    """Forwards of a mixture of experts that say which ones each cell took.

    Hooks are there while such a forward runs, and at no other time: what shares the weights (a
    draft, another arm) is not seen, and nothing is slower than before.

    Args:
        lm: the model; it runs eagerly.
        option: how complaints begin.

    Raises:
        UserError: its experts cannot be counted.
    """

    def __init__(self, lm: HFCausalLM, option: str = "experts=True"):
        self.counts = require_experts(option, lm.model.config)
        require_plain_steps(option, lm.runtime, None)
        self._lm, self._option = lm, option
        self._layers = expert_layers(lm.model.get_decoder())
        if not self._layers:
            kind = lm.model.config.model_type
            raise UserError(f"{option}: {kind} does not say which experts it chose")

    def forward(
        self,
        rows: Sequence[int],
        token_ids: Tensor,
        positions: Tensor | None = None,
        attend: Tensor | None = None,
        layers: Sequence[Layer] = (),
    ) -> Forward:
        """Do what the model does, and say which experts each cell took: `Forward.experts`.

        Raises:
            UserError: not every layer read all cells at once, and them alone.
        """
        with watched(self._layers) as seen:
            found = self._lm.forward(rows, token_ids, positions, attend, layers)
        batch, num_new = token_ids.shape
        if any(len(each) != 1 or len(each[0]) != batch * num_new for each in seen):
            raise UserError(
                f"{self._option}: a step was not read by one forward of its tokens alone"
            )
        chosen = torch.stack([each[0].to(token_ids.device) for each in seen])  # [L, B * M, k]
        return replace(found, experts=chosen.unflatten(1, (batch, num_new)).permute(1, 2, 0, 3))


def expert_layers(decoder: nn.Module) -> list[ExpertLayer]:
    """Find the modules that hold experts, from the first layer to the last."""
    found: list[ExpertLayer] = []
    for module in decoder.modules():
        parameters = list(inspect.signature(module.forward).parameters)
        name = next((name for name in CHOSEN if name in parameters), None)
        if name is not None:
            found.append(ExpertLayer(module, name, parameters.index(name)))
    return found


@contextmanager
def watched(layers: Sequence[ExpertLayer]) -> Generator[list[list[Tensor]]]:
    """Within it each layer's choices are noted, one tensor [tokens, k] for each call."""
    seen: list[list[Tensor]] = [[] for _ in layers]
    handles = [
        layer.module.register_forward_pre_hook(_noting(layer, calls), with_kwargs=True)
        for layer, calls in zip(layers, seen, strict=True)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _noting(layer: ExpertLayer, calls: list[Tensor]) -> Any:
    def note(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        calls.append(kwargs[layer.name] if layer.name in kwargs else args[layer.place])

    return note


def distinct(experts: Tensor, num_experts: int) -> list[int]:  # [n, L, k] -> [L]
    """Count the experts that n cells touch, layer by layer.

    Numbers beyond the experts stand for none: some families have such, which have no weights.
    """
    each = experts.permute(1, 0, 2).flatten(1)  # [L, n * k]
    marks = torch.zeros(len(each), num_experts + 1, dtype=torch.bool, device=experts.device)
    marks.scatter_(1, each.clamp(max=num_experts), True)
    return [int(number) for number in marks[:, :num_experts].sum(dim=1).tolist()]
