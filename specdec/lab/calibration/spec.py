"""What a calibration is to measure, read once from its options and checked before it loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.core.errors import (
    UserError,
    require,
    require_bool,
    require_int,
    require_kind,
    require_name,
)
from specdec.core.protocols import TreePolicy
from specdec.core.sampling import Sampling
from specdec.core.values import CandidateSource
from specdec.lab.compatibility import require_decoder
from specdec.lab.option_names import Points
from specdec.lab.part import Part
from specdec.lab.spec import ModelPart, ProposerPart
from specdec.lm.translation import SAME
from specdec.proposer.early_exit import EarlyExit
from specdec.proposer.tree_fit import heads_config
from specdec.training.data.reading import Reading
from specdec.training.data.text import require_readable

DRAFT_DEPTH = 4  # where none is given: as many as there usually are heads


@dataclass(frozen=True)
class CalibrationSpec:
    """Heads or a draft model, the verifier, and what their ranks are measured on."""

    verifier: ModelPart
    proposer: ProposerPart
    sampling: Part[Sampling]  # of the text that drawn children are for
    reading: Part[Reading]
    data: Mapping[str, Any]  # `path`, `max_length`, `limit`
    data_path: str | None  # of the text; None with a recording
    recording: str | None  # a folder, in place of the text
    costs: str | None  # a file, with a recording
    depth: int | None
    max_rank: int
    max_nodes: int
    num_nodes: int | None
    positional: bool
    max_children: int
    batch: int
    seed: int
    dtype: str

    @classmethod
    def of(cls, options: Mapping[str, Any], chosen_as: str, points: Points) -> CalibrationSpec:
        """Read the resolved options of `calibrate`.

        Args:
            options: a mapping for each node.
            chosen_as: the proposer's name.
            points: which options are taken from which others.
        """
        tree = Part[TreePolicy]("tree", options["tree"])
        proposer = options["proposer"]
        names = ("recording", "costs", "depth", "max_rank", "max_nodes", "num_nodes", "positional")
        names += ("max_children", "batch", "seed", "dtype", "data")
        return cls(
            verifier=ModelPart("verifier", options["verifier"], points=points),
            proposer=ProposerPart("proposer", proposer, chosen_as, points, tree=tree),
            sampling=Part("sampling", options["sampling"], points=points),
            reading=Part("reading", options["reading"], points=points),
            data_path=options["data"]["path"],
            **{name: options[name] for name in names},
        )

    @property
    def draft(self) -> ModelPart | None:
        """The draft model; None: heads draft, or an early exit."""
        return self.proposer.draft_model

    @property
    def drafts_alone(self) -> bool:
        """Whether one model drafts at all depths alike: a draft model, or an early exit."""
        return self.draft is not None or self.proposer.kind is EarlyExit

    def check(self) -> None:
        """Refuse what is wrong before a model is loaded.

        Raises:
            UserError: with the option and its value.
        """
        self._check_text()
        proposer = self.proposer
        # Neither parts nor a cascade grow a tree of ranks.
        known = proposer.source is not CandidateSource.PARTS and not proposer.is_cascade
        known = known and (proposer.has_heads or self.drafts_alone)
        expected = (
            "one of medusa, chained, eagle, mtp, block, early_exit, draft_model, or of your own"
            " with heads or a draft model"
        )
        require(known, "proposer", proposer.name, expected)
        if self.draft is not None:
            expected = f"{SAME}: ranks and children are measured in the verifier's tokens alone"
            require(
                self.draft.vocabulary == SAME, "draft.vocabulary", self.draft.vocabulary, expected
            )
        for name, value, least in (
            ("max_rank", self.max_rank, 0),
            ("max_nodes", self.max_nodes, 1),
            ("batch", self.batch, 1),
        ):
            require_int(name, value, least)
        self._check_num_nodes()
        for name, value in (("depth", self.depth), ("data.limit", self.data["limit"])):
            if value is not None:
                require_int(name, value, 1)
        require_int("data.max_length", self.data["max_length"], 3)
        require_int("seed", self.seed, 0)
        self._check_positional()
        if self.recording is None:
            assert self.data_path is not None
            require_readable(self.reading.build().source(self.data_path, "data.path"))
        if self.proposer.has_heads:
            require_depth(self.depth, heads_config(self.proposer.path).get("num_heads"))

    def check_verifier(self) -> None:
        """Refuse a verifier that does not read the text, by its configuration.

        Raises:
            UserError: there is none, or it has an encoder and no recording tells its sources.
        """
        if self.recording is None:
            why = "texts are read here without a source; expected recording=DIR, which has them"
            require_decoder(self.verifier, why)

    def _check_text(self) -> None:
        recording = self.recording
        if recording is not None:
            require_kind("recording", recording, str, "a folder of specdec-record")
            require(not self.positional, "positional", True, "false with a recording")
        elif self.data_path is None:
            raise UserError("data.path: missing; expected data.path=FILE, or recording=DIR")
        else:
            require_name("data.path", self.data_path, "a file")

    def _check_num_nodes(self) -> None:
        """Refuse a tree that is larger than the file, or whose size nothing says."""
        costs, number = self.costs, self.num_nodes
        require_kind("costs", costs, str | None, "a file of specdec-costs")
        if costs is not None:
            require(self.recording is not None, "costs", costs, "a recording, too, recording=DIR")
        if number is None:
            require(costs is not None, "num_nodes", number, "a number, or costs=FILE that tells it")
            return
        require_int("num_nodes", number, 1)
        fits = number <= self.max_nodes
        require(fits, "num_nodes", number, f"at most max_nodes={self.max_nodes}")

    def _check_positional(self) -> None:
        require_bool("positional", self.positional)
        require_int("max_children", self.max_children, 1)
        sampling = self.sampling.build()
        own = self.proposer.get("temperature")
        name, value = ("sampling", sampling.temperature) if own is None else ("proposer", own)
        if self.positional and value == 0:
            raise UserError(
                f"{name}.temperature={value}: the draft would be certain of one token and draw no"
                f" second child; expected {name}.temperature > 0 for positional=true"
            )


def require_depth(depth: int | None, num_heads: int | None) -> None:
    """Refuse to look further ahead than there are heads."""
    if depth is not None and num_heads is not None and depth > num_heads:
        raise UserError(f"depth={depth}: there are {num_heads} heads")


def require_file(output: object) -> Path:
    """Refuse an output that is no file."""
    if not isinstance(output, str) or not output:
        raise UserError(f"output={output!r}: expected a file")
    require(not Path(output).is_dir(), "output", output, "a file, not a folder")
    return Path(output)
