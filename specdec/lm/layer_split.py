"""A stock model of which some decoder layers stand aside, with its own code and weights.

Each part is a copy of the model's modules, not of their weights, that has stand-ins in the places
of some layers. So whatever a family does around its layers (scaled embeddings, learned positions, a
mask for each kind of layer, capped logits) is done by its own code, and the layers that are left
keep their numbers, and with these their cells in a cache.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specdec.core.errors import UserError, require
from specdec.lm.decoder_states import with_other
from specdec.lm.placement import device_of


class LayerSplit:
    """The layers that draft, those that are shared with verification, and the rest.

    The layers before the first one that is skipped say of a draft token what they would say of it
    anyway: their cells and states are the verifier's own, and verification goes on behind them.

    Args:
        model: a decoder of transformers.
        skipped: numbers of layers that do not draft.
        exit: what becomes of states [..., H] at the first skipped layer; None: nothing.
        vocabulary_head: in place of the model's own; None: that one.

    Raises:
        UserError: there are no such layers, or none would be left.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        skipped: Sequence[int],
        exit: nn.Module | None = None,
        vocabulary_head: nn.Module | None = None,
    ):
        self._model = model
        self._layers = decoder_layers(model)
        number = len(self._layers)
        require_skippable(skipped, number)
        self.skipped = frozenset(skipped)
        self.num_shared = min(skipped)  # layers that are never computed twice
        self._carried = _Carried()
        self._in_tuples = _returns_tuples(model, self._layers[0])
        first = range(number)
        stand_ins = {each: self._stand_in(each) for each in self.skipped}
        catching = self._stand_in(self.num_shared, exit, catches=True)
        self.draft = self._with(stand_ins | {self.num_shared: catching})
        if vocabulary_head is not None:
            self.draft = _with_head(self.draft, vocabulary_head)
        caught = self._stand_in(self.num_shared, catches=True)
        below = {each: self._stand_in(each) for each in first[self.num_shared :]}
        self.shared: nn.Module = self._with(below | {self.num_shared: caught}).base_model
        given = {each: self._stand_in(each, gives=True) for each in first[: self.num_shared]}
        self.rest = self._with(given)
        # All but layers: states that are given go through the exit to logits.
        above = self._stand_in(0, exit, gives=True)
        none = {each: self._stand_in(each) for each in first} | {0: above}
        self._above = self._with(none)
        if vocabulary_head is not None:
            self._above = _with_head(self._above, vocabulary_head)

    def take(self) -> Tensor:  # [B, M, H]
        """Return the states that reached the first skipped layer in the last forward."""
        return self._carried.taken()

    def give(self, states: Tensor) -> None:  # [B, M, H]
        """Let the next forward of `rest` begin with these states behind the shared layers."""
        self._carried.states = states

    def logits_of(self, states: Tensor) -> Tensor:  # [n, H] -> [n, V]
        """Return what the draft says where these states reached the first skipped layer.

        That is so where no layer behind it drafts: of an early exit.
        """
        self.give(states[:, None])
        read = _any_tokens(len(states), states.device)
        found: Any = self._above(**read, use_cache=False)
        return found.logits[:, 0]

    def _stand_in(
        self, number: int, exit: nn.Module | None = None, catches: bool = False, gives: bool = False
    ) -> "_StandIn":
        how = (self._carried, exit, catches, gives, self._in_tuples)
        return _StandIn(self._layers[number], *how)

    def _with(self, stand_ins: dict[int, "_StandIn"]) -> PreTrainedModel:
        layers = [stand_ins.get(number, layer) for number, layer in enumerate(self._layers)]
        found: Any = with_other(self._model, self._layers, nn.ModuleList(layers))
        return found


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the list of a model's decoder layers.

    Raises:
        UserError: there is no list of as many modules as the configuration has layers.
    """
    number = model.config.get_text_config().num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return module
    raise UserError(f"{model.config.model_type}: its {number} layers stand in no list")


def require_skippable(skipped: Sequence[int], number: int) -> None:
    """Refuse numbers of layers of which a model with `number` layers has not all, or only those.

    Raises:
        UserError: so it is.
    """
    expected = f"different numbers from 0 to {number - 1}, at least one and not all"
    there = all(type(each) is int and 0 <= each < number for each in skipped)
    proper = 0 < len(set(skipped)) < number and len(set(skipped)) == len(skipped)
    require(there and proper, "skipped_layers", list(skipped), expected)


@torch.inference_mode()
def _returns_tuples(model: PreTrainedModel, layer: nn.Module) -> bool:
    """Whether a layer returns its states as the first of several things."""
    found: list[bool] = []

    def see(module: nn.Module, given: object, returned: object) -> None:
        found.append(isinstance(returned, tuple))

    hook = layer.register_forward_hook(see)
    try:
        model(**_any_tokens(1, device_of(model)), use_cache=False)
    finally:
        hook.remove()
    return found[0]


def _any_tokens(number: int, device: torch.device) -> dict[str, Tensor]:  # of [n, 1]
    """Return texts of one token each, which nobody looks at."""
    token_ids = torch.zeros(number, 1, dtype=torch.int64, device=device)
    return {"input_ids": token_ids, "attention_mask": torch.ones_like(token_ids)}


class _Carried:
    """States on their way from one forward to the next."""

    def __init__(self) -> None:
        self.states: Tensor | None = None

    def taken(self) -> Tensor:
        found = self.states
        assert found is not None, "no states reached the layer"
        self.states = None
        return found


class _StandIn(nn.Module):
    """Stands in the place of a layer: hands on the states that it gets, or those it is given."""

    def __init__(
        self,
        layer: nn.Module,
        carried: _Carried,
        exit: nn.Module | None,
        catches: bool,
        gives: bool,
        in_tuples: bool,
    ):
        super().__init__()
        # Not registered: as parts of this they would be moved, searched and counted twice.
        self.__dict__.update(_of=layer, _carried=carried, _exit=exit)
        self._catches, self._gives, self._in_tuples = catches, gives, in_tuples

    def __getattr__(self, name: str) -> Any:
        """All else is as in the layer: models ask them for their kinds."""
        return getattr(self.__dict__["_of"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        """Return states [B, M, H] as a layer does that returns nothing else."""
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        carried: _Carried = self.__dict__["_carried"]
        if self._catches:
            carried.states = hidden
        if self._gives:
            assert carried.states is not None
            hidden = carried.states.to(hidden.device)
        exit = self.__dict__["_exit"]
        hidden = hidden if exit is None else exit(hidden)
        return (hidden,) if self._in_tuples else hidden


def _with_head(model: PreTrainedModel, vocabulary_head: nn.Module) -> PreTrainedModel:
    head = model.get_output_embeddings()
    assert head is not None
    found: Any = with_other(model, head, vocabulary_head)
    return found
