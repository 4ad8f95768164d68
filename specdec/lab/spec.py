"""What an arm is, read once from its options: typed, frozen, and nothing of it loaded yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from specdec.core.errors import require
from specdec.core.narrowing import is_list, is_mapping
from specdec.core.protocols import Pace, Proposer, TreePolicy, VerificationRule
from specdec.core.sampling import Sampling
from specdec.core.values import CandidateSource, Draw, Draws, are_draws, united
from specdec.lab.option_names import Points, option_of
from specdec.lab.part import TARGET, Part
from specdec.lab.prompt_options import PromptOptions
from specdec.lab.sweep_job import SweepJob
from specdec.lm.checkpoint import Checkpoint
from specdec.lm.hf import HFCausalLM
from specdec.lm.translation import SAME, STRINGS
from specdec.online.distil import OnlineDistillation
from specdec.proposer.cascade import Cascade
from specdec.results.options import HOMES

LOADER = "specdec.lm.load.load"
GROWING = (CandidateSource.MODEL, CandidateSource.HEADS, CandidateSource.VERIFIER)
FIXED = {TARGET: "specdec.pacing.fixed.Fixed"}  # of runs that do not say
Options = Mapping[str, Any]
# The options of an arm that are one value each.
PLAIN = (
    *("batch", "seed", "device", "dtype", "max_new_tokens", "min_new_tokens", "stop_strings"),
    *("ignore_eos", "log_probs", "keep_candidates", "resume", "tracker"),
)


def source_of(part: Part[Any]) -> CandidateSource | None:
    """Return the `source` that the class of a proposer, or of a training, declares, if it does."""
    found = getattr(part.kind, "source", None)
    return found if isinstance(found, CandidateSource) else None


@dataclass(frozen=True)
class ModelPart(Part[HFCausalLM]):
    """A language model: `path` and what `specdec.lm.load.load` takes beside it."""

    @property
    def path(self) -> str:
        """A folder, a Hub id, or `zoo:NAME`; whatever was given, until it is looked at."""
        return self.options["path"]

    @property
    def revision(self) -> str | None:
        """Which state of it."""
        return self.options.get("revision")

    @property
    def max_length(self) -> int | None:
        """Tokens of context; None: what its configuration says."""
        return self.options.get("max_length")

    @property
    def adapter(self) -> str | None:
        """A folder of LoRA weights that are merged into it."""
        return self.options.get("adapter")

    @property
    def vocabulary(self) -> str:
        """In which tokens a draft model drafts: the verifier's, those of both, or text."""
        return self.options.get("vocabulary", SAME)

    @property
    def checkpoint(self) -> Checkpoint:
        """Where it lies.

        Raises:
            UserError: one of the options that say so is wrong.
        """
        return Checkpoint.of(self.options, option_of(f"{self.at}.path", self.points))

    def build(self, **given: Any) -> HFCausalLM:
        """Load it whole.

        Raises:
            UserError: it cannot be loaded, or processes are to share its weights.
        """
        self.require_whole()
        return self.build_shared(**given)

    def require_whole(self) -> None:
        """Refuse a model whose weights processes are to share.

        Raises:
            UserError: they are.
        """
        expected = "null: processes share a verifier's weights in decode alone"
        plan = self.options.get("tp_plan")
        require(plan is None, f"{self.at}.tp_plan", plan, expected)

    def build_shared(self, **given: Any) -> HFCausalLM:
        """Load it; each process holds a part of its weights where `tp_plan` says so.

        Raises:
            UserError: it cannot be loaded.
        """
        return super().build(**given)


@dataclass(frozen=True)
class ProposerPart(Part[Proposer]):
    """A proposer; its class says what its candidates come from, whatever its arguments are called.

    A class from elsewhere that declares no `source` is taken for nothing in particular: it has the
    models and the tree that its arguments are, under any name.
    """

    tree: Part[TreePolicy] = field(kw_only=True)  # of its arm

    @property
    def source(self) -> CandidateSource | None:
        """What its class declares; None: nothing."""
        return source_of(self)

    @property
    def parts(self) -> list[ProposerPart]:
        """The proposers that it is made of; most are made of none.

        Raises:
            UserError: one of them is none.
        """
        if self.source is not CandidateSource.PARTS:
            return []
        found, at = self.get("parts"), f"{self.at}.parts"
        require(is_list(found), at, found, "a list of proposers, [suffix,draft_model]")
        parts: list[ProposerPart] = []
        for place, each in enumerate(found if is_list(found) else ()):
            require(is_mapping(each), at, found, "a list of proposers, [suffix,draft_model]")
            parts.append(ProposerPart(f"{at}.{place}", each, None, self.points, tree=self.tree))
        return parts

    @property
    def leaves(self) -> list[ProposerPart]:
        """The proposers that candidates come from in the end; of most proposers itself."""
        parts = self.parts
        return [leaf for part in parts for leaf in part.leaves] if parts else [self]

    @property
    def is_cascade(self) -> bool:
        """Whether another proposer drafts for its model."""
        return self.kind is not None and issubclass(self.kind, Cascade)

    @property
    def inner(self) -> ProposerPart | None:
        """The proposer that drafts for the model of a cascade; None: this is none."""
        found = self.get("inner")
        if not (self.is_cascade and is_mapping(found)):
            return None
        at = f"{self.at}.inner"
        tree = Part[TreePolicy](f"{at}.tree", found.get("tree") or {}, points=self.points)
        return ProposerPart(at, found, points=self.points, tree=tree)

    @property
    def models(self) -> list[ModelPart]:
        """Its arguments, and those of its parts or of a cascade's proposer, that are models."""
        if self.parts:
            return [model for part in self.parts for model in part.models]
        own = [
            ModelPart(f"{self.at}.{name}", value, points=self.points)
            for name, value in self.options.items()
            if is_mapping(value) and value.get(TARGET) == LOADER
        ]
        return own if self.inner is None else [*own, *self.inner.models]

    @property
    def draft_model(self) -> ModelPart | None:
        """The model whose probabilities its candidates are drawn with; None: it has none."""
        drafting = (leaf for leaf in self.leaves if leaf.source is CandidateSource.MODEL)
        return next((model for leaf in drafting for model in leaf.models), None)

    @property
    def drafts_text(self) -> bool:
        """Whether a model of another tokenizer writes text, which is a point mass."""
        draft = self.draft_model
        return draft is not None and draft.vocabulary == STRINGS

    @property
    def reads_same_tokens(self) -> bool:
        """Whether what its candidates are drawn from follows from the verifier's tokens alone."""
        draft = self.draft_model
        return draft is None or draft.vocabulary == SAME

    @property
    def temperature(self) -> float | None:
        """What its candidates are drawn at; None: the temperature of the text."""
        return self.options.get("temperature")

    @property
    def has_heads(self) -> bool:
        """Whether it is given the verifier, on whose hidden states it drafts."""
        return any(leaf.source is CandidateSource.HEADS for leaf in self.leaves)

    @property
    def has_layers(self) -> bool:
        """Whether it is given the verifier, with layers of which it drafts."""
        return self.source is CandidateSource.VERIFIER

    @property
    def grows_trees(self) -> bool:
        """Whether the tree of its arm is one of its arguments."""
        if self.parts:
            return any(part.grows_trees for part in self.parts)
        if self.source is not None:
            return self.source in GROWING
        return any(value == self.tree.options for value in self.options.values())

    @property
    def path(self) -> str | None:
        """The folder of its heads, exit or draft model; None: it has none."""
        model = self.draft_model
        trained = self.has_heads or self.has_layers
        path = model.path if model is not None else self.get("path") if trained else None
        return path if isinstance(path, str) else None

    def draw(self, tree: TreePolicy) -> Draws:
        """Return how candidates will be chosen: by the tree, or as the proposer's class says.

        None where nothing is proposed, or only the proposer itself can say, once it is built.
        """
        if self.parts:
            return united(part.draw(tree) for part in self.parts)
        if self.grows_trees:
            return Draw.DETERMINISTIC if self.drafts_text else tree.draw
        found = getattr(self.kind, "draw", None)
        return found if are_draws(found) else None

    @property
    def says_draw(self) -> bool:
        """Whether `draw` knows: the tree says it, or the class does, if only that it has none."""
        if self.parts:
            return all(part.says_draw for part in self.parts)
        return self.grows_trees or are_draws(getattr(self.kind, "draw", ""))

    def build_for(self, verifier: HFCausalLM) -> Proposer:
        """Make it; heads, and what drafts with layers, get the very model, not another copy.

        Raises:
            UserError: as of `build`.
        """
        if self.parts:
            return self.build(parts=[part.build_for(verifier) for part in self.parts])
        wanted = self.has_heads or self.has_layers
        return self.build(**({"verifier": verifier} if wanted else {}))


@dataclass(frozen=True)
class ArmSpec:
    """One proposer, one tree and one rule with all that decides what they decode.

    `options` are all options as their run directory keeps them; everything else is read from
    these, and not checked before `specdec.lab.checks.check_arm` does: until then a field holds
    whatever was given.
    """

    options: Options
    verifier: ModelPart
    draft: ModelPart
    proposer: ProposerPart
    tree: Part[TreePolicy]
    rule: Part[VerificationRule]
    pace: Part[Pace]
    judges: Mapping[str, Part[VerificationRule]]
    sampling: Part[Sampling]
    prompts: PromptOptions
    sweep: SweepJob
    allow_lossy: bool  # whether a rule may be used that changes the distribution
    batch: int  # requests in flight
    seed: int  # of all that is drawn
    device: str  # where it decodes
    dtype: str  # of the models, unless one of them has its own
    max_new_tokens: int  # of a text
    min_new_tokens: int | None  # None: as the checkpoint says
    stop_strings: Sequence[str] | None  # escapes unresolved; None: as the checkpoint says
    ignore_eos: bool  # whether end tokens are tokens like any other
    log_probs: bool  # whether traces say how likely each token was
    experts: bool  # whether the experts of the verifier are counted
    online: Part[OnlineDistillation] | None  # how the proposer learns; None: it does not
    keep_candidates: int  # of how many prompts the candidates are kept, to be looked at
    resume: bool  # whether an interrupted run goes on, and a complete one stays
    tracker: str  # where results go beside the run directory

    @classmethod
    def of(
        cls,
        options: Options,
        judges: Mapping[str, Options] | None = None,
        points: Points | None = None,
    ) -> ArmSpec:
        """Read the resolved options of `decode` or of an arm of `compare`.

        Args:
            options: a mapping for each node, as `config.yaml` holds them.
            judges: the rules that are shown the same candidates, each with its `_target_`.
            points: which options are taken from which others; None: what a proposer is given are
                the nodes of that name, as they are unless the command line says otherwise.

        Raises:
            UserError: an option of `prompts` is not what it should be.
        """
        choices: Mapping[str, str] = options.get("choices") or {}
        if points is None:
            points = {f"proposer.{name}": home for name, home in HOMES.items()}
        tree = Part[TreePolicy]("tree", options["tree"], choices.get("tree"), points)
        proposer, rule = options["proposer"], options["verification"]["rule"]
        called = choices.get("proposer")
        return cls(
            options,
            verifier=ModelPart("verifier", options["verifier"], points=points),
            draft=ModelPart("draft", options["draft"], points=points),
            proposer=ProposerPart("proposer", proposer, called, points, tree=tree),
            tree=tree,
            rule=Part("verification.rule", rule, choices.get("verification"), points),
            pace=Part("pace", options.get("pace", FIXED), choices.get("pace"), points),
            judges={n: Part(f"judges.{n}", node, n) for n, node in (judges or {}).items()},
            sampling=Part("sampling", options["sampling"], points=points),
            prompts=PromptOptions(**options["prompts"]),
            sweep=SweepJob.of(options.get("sweep")),
            allow_lossy=options["verification"]["allow_lossy"],
            online=_online(options, choices, points),
            experts=options.get("experts", False),  # older runs do not say
            **{name: options[name] for name in PLAIN},
        )

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is random."""
        return self.sampling.options["temperature"] == 0


def _online(
    options: Options, choices: Mapping[str, str], points: Points
) -> Part[OnlineDistillation] | None:
    node = options.get("online")  # which most runs do not have
    return None if node is None else Part("online", node, choices.get("online"), points)


def is_fixed(spec: ArmSpec) -> bool:
    """Whether all steps of an arm are as deep as its tree, or have no candidates anyway."""
    fixed = spec.pace.target == FIXED[TARGET]
    return fixed or spec.proposer.source is CandidateSource.NOTHING


def with_options(options: Options, changed: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with other values for some, which are named with dots."""
    found = deepcopy(dict(options))
    for name, value in changed.items():
        *nodes, last = name.split(".")
        node: Any = found
        for each in nodes:
            node = node[each]
        node[last] = value
    return found


def pick(options: Options, names: Sequence[str]) -> dict[str, Any]:
    """Return some options, named with dots; None where there is no such option."""
    found: dict[str, Any] = {}
    for name in names:
        node: object = options
        for each in name.split("."):
            node = node.get(each) if is_mapping(node) else None
        found[name] = node
    return found
