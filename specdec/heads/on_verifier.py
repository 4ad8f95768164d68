"""What is trained on one verifier and saved without it: its folder, its card, and whose it is."""

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import nn

from specdec.core.errors import require_int
from specdec.heads.card import CARD
from specdec.lm.folder import proposer_of


class OnVerifier(
    nn.Module,
    PyTorchModelHubMixin,
    ABC,
    library_name="specdec-lab",
    tags=["speculative-decoding"],
    model_card_template=CARD,
):
    """A module that reads states [..., H] of one verifier, and speaks of its V tokens."""

    def __init__(self, hidden_size: int, vocab_size: int, verifier: dict[str, str] | None):
        super().__init__()
        require_int("hidden_size", hidden_size, 1)
        require_int("vocab_size", vocab_size, 1)
        made_with = self._hub_mixin_config  # which is what `save_pretrained` writes
        assert isinstance(made_with, dict)
        self._hub_mixin_config = {**made_with, "kind": type(self).__name__}
        self.hidden_size = hidden_size
        self.vocab_size = vocab_size
        self.verifier = verifier  # whose states it was trained on; see `specdec.lm.fingerprint`

    @property
    @abstractmethod
    def summary(self) -> str:
        """What it is, for its card."""

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Write the README that its folder has; with lines about the training."""
        config = dict(self._hub_mixin_config) if isinstance(self._hub_mixin_config, dict) else {}
        kind = str(config.pop("kind"))
        config.pop("verifier", None)
        missing = dict.fromkeys(("path", "dtype", "config", "tokenizer", "weights"), "unknown")
        verifier = {**missing, "commit": "", **(self.verifier or {})}
        card = super().generate_model_card(
            kind=kind,
            summary=self.summary,
            proposer=proposer_of(kind),
            verifier=verifier,
            options=config,
            training=kwargs.get("training", {}),
        )
        if is_on_hub(verifier["path"]):  # the Hub takes no folder of this machine for a name
            data: Any = card.data  # whose fields depend on the kind of card
            data.base_model = verifier["path"]
        return card

    def belong_to(self, verifier: dict[str, str]) -> None:
        """Note another verifier as the one that it was trained on; it is saved with it.

        Takes the fingerprint of the verifier (see `specdec.lm.fingerprint`).
        """
        self.verifier = verifier
        made_with = self._hub_mixin_config
        assert isinstance(made_with, dict)
        self._hub_mixin_config = {**made_with, "verifier": verifier}


def is_on_hub(path: str) -> bool:
    """Whether a verifier's path is a name on the Hub, as far as a look at it tells."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None and not Path(path).exists()
