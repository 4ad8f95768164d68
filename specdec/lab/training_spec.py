"""What a training is, read once from its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specdec.core.errors import Unfit, require, require_bool
from specdec.core.protocols import TreePolicy
from specdec.core.values import CandidateSource
from specdec.lab.compatibility import has_encoder
from specdec.lab.option_names import Points
from specdec.lab.part import Part
from specdec.lab.spec import ModelPart, source_of
from specdec.lm.mask import PREFIX_LM
from specdec.runtime.choice import AUTO
from specdec.training.data.distill import Distill
from specdec.training.data.reading import Reading, Source
from specdec.training.data.sources import (
    NOT_BESIDE_ENCODER,
    require_pairs,
    require_untemplated,
)
from specdec.training.data.text import require_there
from specdec.training.expected_acceptance import HeldOut
from specdec.training.objective import Loss, Objective
from specdec.training.trainer import Trainer


@dataclass(frozen=True)
class TrainingSpec:
    """Heads, a draft model or a language model, and how it is trained.

    `options` are all options as `config.yaml` keeps them; everything else is read from these.
    """

    options: Mapping[str, Any]
    train: Part[Objective]  # what is trained, alone
    tuning: Part[Objective]  # or with its verifier, if `joint`
    trainer: Part[Trainer]
    reading: Part[Reading]
    loss: Part[Loss]
    distill: Part[Distill]
    evaluation: Part[HeldOut]
    tree: Part[TreePolicy]
    verifier: ModelPart
    joint: bool  # whether the verifier is trained, too
    data: Mapping[str, Any]  # what it is trained on, and how that is read

    @classmethod
    def of(cls, options: Mapping[str, Any], points: Points | None = None) -> TrainingSpec:
        """Read the resolved options of `train`; `points` says which are taken from which others."""
        choices: Mapping[str, str] = options.get("choices") or {}
        points = points or {}

        def part(name: str) -> Part[Any]:
            return Part(name, options[name], choices.get(name), points)

        names = ("train", "tuning", "trainer", "reading", "loss", "distill", "evaluation", "tree")
        parts = {name: part(name) for name in names}
        return cls(
            options,
            verifier=ModelPart("verifier", options["verifier"], points=points),
            joint=options["joint"],
            data=options["data"],
            **parts,
        )

    @property
    def source(self) -> CandidateSource | None:
        """What a proposer makes of what is trained: heads, a model; nothing of a language model."""
        return source_of(self.train)

    @property
    def proposer_name(self) -> str:
        """What decodes with what is trained: of the same name, unless its class says another."""
        return getattr(self.train.kind, "proposer_name", self.train.name)

    @property
    def objective(self) -> Part[Objective]:
        """Heads or a model alone, or heads with their verifier.

        Raises:
            UserError: an option does not fit with `joint`, or the runtime is left open.
        """
        require_bool("joint", self.joint)
        runtime = self.verifier.get("runtime")
        expected = "eager or compiled: a training's length is not known when its verifier is loaded"
        require(runtime != AUTO, "verifier.runtime", runtime, expected)
        device = self.verifier.get("device")
        expected = "cpu: the trainer moves it to where it trains, whole"
        require(device != AUTO, "verifier.device", device, expected)
        if not self.joint:
            return self.train
        cache_path = self.data["cache_path"]
        expected = "null with joint=true, since the states of a verifier that is tuned do not last"
        require(cache_path is None, "data.cache_path", cache_path, expected)
        attention = self.verifier.get("attention")
        expected = "another with joint=true, which tunes verifiers that read from left to right"
        require(attention != PREFIX_LM, "verifier.attention", attention, expected)
        return self.tuning

    def require_data(self) -> tuple[Source, Source]:
        """Refuse a training without text; what the files hold is seen when they are read.

        Returns:
            What is trained on, and what is held out.

        Raises:
            UserError: there is no such file or data set.
        """
        path, held_out = self.data["path"], self.data["held_out_path"]
        require(isinstance(path, str), "data.path", path, "a file's name")
        named = held_out is None or isinstance(held_out, str)
        require(named, "data.held_out_path", held_out, "a file's name, or null")
        sources = self.reading.build().sources(path, held_out)
        for source in sources:
            require_there(source)
        return sources

    def require_sides(self, sources: Sequence[Source]) -> None:
        """Refuse what cannot be trained on a verifier with an encoder, or not on such data.

        Raises:
            UserError: it is no heads, or the verifier is trained, too, or a text has no source.
        """
        if self.source is None or not has_encoder(self.verifier):
            return
        if self.joint or self.source is not CandidateSource.HEADS:
            what = "joint=true" if self.joint else f"train={self.train.name}"
            raise Unfit(f"{what}: {NOT_BESIDE_ENCODER}")
        require_untemplated(self.reading.build())
        for source in sources:
            require_pairs(source)
