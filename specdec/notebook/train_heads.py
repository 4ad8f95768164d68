"""`sd.train_heads`: what `specdec-train` does for heads, with objects."""

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from specdec.core.errors import UserError, require, require_int, require_kind
from specdec.core.protocols import TreePolicy
from specdec.core.sampling import Sampling
from specdec.lab.described import described, flattened
from specdec.lab.identity import content_of
from specdec.lab.measured_on import measured_on
from specdec.lab.training_run import fit
from specdec.lm.hf import HFCausalLM
from specdec.notebook.given import folder_of, require_verifier
from specdec.proposer.feature_proposer import FeatureProposer
from specdec.results.flat import Frame
from specdec.training.acceptance import Acceptance
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.expected_acceptance import HeldOut
from specdec.training.heads import HeadTraining
from specdec.training.loss.cross_entropy import CrossEntropy
from specdec.training.medusa import MedusaTraining
from specdec.training.metrics_log import by_step
from specdec.training.objective import Loss
from specdec.training.record import Record
from specdec.training.trained_folder import training_steps
from specdec.training.trainer import FREE, Trainer
from specdec.training.training_dir import BEST, LOG
from specdec.tree.chain import Chain

OF_DATA = ("data_path", "held_out_path", "max_length", "eval_samples", "seed", "distill", "reading")
# Where something is kept, and what an evaluation has found.
LEFT_OUT = (
    *("data.distill.path", "data.distill.batch", "data.reading.tokens_path"),
    "evaluation.own.known",
)


@dataclass(frozen=True)
class TrainedHeads:
    """A folder of trained heads, and how their training went.

    Args:
        path: the folder.
        kind: the proposer that decodes with them.
        steps: that they were trained.
    """

    path: Path
    kind: type[FeatureProposer]
    steps: int

    @property
    def best(self) -> Path:
        """The folder of the heads of the best evaluation, which may be earlier than the last."""
        return self.path / BEST if (self.path / BEST).is_dir() else self.path

    def table(self) -> Frame:
        """Return a row for each step that was logged: loss in nats, and evaluations."""
        return by_step(self.path / LOG)

    def load(
        self, verifier: HFCausalLM, tree: TreePolicy, temperature: float | None = None
    ) -> FeatureProposer:
        """Return a proposer with the best heads.

        Raises:
            UserError: they were trained on another verifier, or the tree is deeper than they are.
        """
        return self.kind.load(str(self.best), verifier, tree, temperature)


def train_heads(
    verifier: HFCausalLM,
    data: str | Path | VerifierStates,
    output: str | Path,
    *,
    training: type[HeadTraining] = MedusaTraining,
    held_out: str | Path | None = None,
    loss: Loss | None = None,
    acceptance: Acceptance | None = None,
    trainer: Trainer | None = None,
    **options: Any,
) -> TrainedHeads:
    """Train heads on a frozen verifier (Medusa-1, Cai et al. 2024), with a progress bar.

    Called again with the same arguments it resumes, or returns what is complete.

    Args:
        verifier: whose hidden states the heads read, from `sd.load`.
        data: a text or conversations, see `docs/training.md`; or `sd.VerifierStates`, with all
            that can be said of reading them, distillation and a cache.
        output: the folder that the heads go into.
        training: `sd.MedusaTraining`, `sd.ChainedTraining`, `sd.EagleTraining`, `sd.MtpTraining`,
            `sd.BlockTraining`, or your own kind.
        held_out: data to evaluate on; None: a twentieth of `data`, which is not trained on.
        loss: of a token, or of a step; None: `sd.CrossEntropy()`.
        acceptance: how block efficiency is measured; None: `sd.HeldOut`, greedy, along a chain.
        trainer: steps, batch size, learning rate and the rest; None: `sd.Trainer()`.
        options: of the kind of heads: `num_heads` or `steps`, `decay`, `share` and so on.

    Returns:
        The folder, `table()` of losses and evaluations, a pandas frame, and `load`.

    Raises:
        UserError: an option is wrong, the data cannot be read, or `output` holds another training.
    """
    require_verifier(verifier)
    place = folder_of("output", output)
    trainer, loss = trainer or Trainer(), loss or CrossEntropy()
    _require_parts(training, loss, acceptance, trainer)
    states = _states(verifier, data, held_out, trainer.seed)
    acceptance = acceptance or HeldOut(Chain(_depth(training, options)), Sampling(0.0))
    objective = training(states, loss, acceptance, **options)
    parts = {"verifier": verifier, "train": {"kind": training, **options}, "loss": loss}
    parts |= {"data": _data_read(states), "evaluation": acceptance}
    fit(trainer, lambda: objective, _record(trainer, verifier, parts), place)
    return TrainedHeads(place, training.proposer, training_steps(place) or 0)


def _depth(training: type[HeadTraining], options: Mapping[str, Any]) -> int:
    """Return how deep a chain the heads will draft: what is asked for, or the kind's default."""
    takes = signature(training).parameters
    name = next((each for each in ("num_heads", "steps") if each in takes), None)
    if name is None:
        return 1
    found = options.get(name, takes[name].default)
    require_int(name, found, 1)
    return found


def _require_parts(kind: object, loss: object, acceptance: object, trainer: object) -> None:
    """Refuse what is of another kind, before any data are read."""
    is_kind = HeadTraining in getattr(kind, "__mro__", ())
    require(is_kind, "training", kind, "a class, sd.MedusaTraining")
    scores = callable(loss) and not isinstance(loss, type) and hasattr(loss, "uses_verifier")
    require(scores, "loss", loss, "a loss, sd.KL(), with `uses_verifier`")
    good = acceptance is None or isinstance(acceptance, Acceptance)
    require(good, "acceptance", acceptance, "sd.HeldOut(tree, sampling)")
    require_kind("trainer", trainer, Trainer, "sd.Trainer(max_steps=1000)")


def _data_read(states: VerifierStates) -> dict[str, object]:
    """Return what decides on the samples."""
    template: object = getattr(states.verifier.tokenizer, "chat_template", None)
    found: dict[str, object] = {name: getattr(states, name) for name in OF_DATA}
    return found | {"chat_template": str(template)}


def _states(
    verifier: HFCausalLM,
    data: str | Path | VerifierStates,
    held_out: str | Path | None,
    seed: int,
) -> VerifierStates:
    if not isinstance(data, VerifierStates):
        require_kind("data", data, str | Path, "a file or a data set, or sd.VerifierStates")
        rest = None if held_out is None else str(held_out)
        return VerifierStates(verifier, str(data), rest, seed=seed)
    if data.verifier is not verifier:
        raise UserError("data: states of another verifier; expected those of this one")
    # That of the data decides on weights and order; two would be one too many.
    require(data.seed == seed, "trainer.seed", seed, f"{data.seed}, as of sd.VerifierStates")
    if held_out is not None:
        raise UserError(f"held_out={held_out!r}: expected it in sd.VerifierStates")
    return data


def _record(trainer: Trainer, verifier: HFCausalLM, parts: Mapping[str, object]) -> Record:
    """Say which training this is: files by their content, code by its source."""
    known = {f"trainer.{n}": v for n, v in trainer.options.items() if n not in FREE}
    for name, part in parts.items():
        known |= flattened(name, described(part))
    known = {name: each for name, each in known.items() if not name.startswith(LEFT_OUT)}
    paths = {name: v for name, v in known.items() if name.endswith("path") and isinstance(v, str)}
    contents = {name: {"content": content_of(path)} for name, path in paths.items()}
    circumstances = measured_on(verifier)
    return Record(known | contents, known, provenance=circumstances)
