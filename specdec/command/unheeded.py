"""Options that a command has and, as it was called, does not heed: refused, with what is meant.

An option that is accepted and ignored is worse than one that is refused: the numbers are then
attached to something that was never run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from specdec.command.options import declared
from specdec.core.errors import UserError
from specdec.core.values import CandidateSource


@dataclass(frozen=True)
class Unheeded:
    """Options, a node standing for all below it, that do nothing where `when` holds."""

    options: frozenset[str]
    instead: str
    when: Callable[[DictConfig], bool] = lambda config: True


def _of(*options: str) -> frozenset[str]:
    return frozenset(options)


def _is_alone(config: DictConfig) -> bool:
    """Whether a language model is trained, without a verifier."""
    return declared(config.train) is CandidateSource.NOTHING


def _by_heads(config: DictConfig) -> bool:
    return declared(config.proposer) is CandidateSource.HEADS


DECODING = _of(
    *("verifier", "draft", "prompts", "sampling", "proposer", "tree", "verification", "judges"),
    *("cache", "pace", "online", "loss"),
    *(
        "max_new_tokens",
        "min_new_tokens",
        "stop_strings",
        "ignore_eos",
        "log_probs",
        "experts",
        "batch",
        "device",
    ),
    *("dtype", "attention", "runtime", "seed"),
    *("tracker", "keep_candidates", "resume"),
)
LEARNING = Unheeded(
    _of("loss"),
    "is what a proposer learns by while it drafts; expected online=distil, too",
    lambda config: config.get("online") is None and "online=" not in str(config.get("arms")),
)
SINGLE = Unheeded(_of("hydra.sweep"), "is where sweeps go, with -m; expected output=DIR")
UNHEEDED: Mapping[str, Sequence[Unheeded]] = {
    "decode": [SINGLE, LEARNING],
    "compare": [SINGLE, LEARNING],
    "replay": [SINGLE],
    "check": [SINGLE],
    "report": [SINGLE],
    "describe": [SINGLE],
    "explain": [
        SINGLE,
        LEARNING,
        Unheeded(_of("batch", "prompts.num_samples"), "one text is told, one step after the other"),
        Unheeded(_of("judges", "log_probs", "experts"), "is for traces; expected specdec-decode"),
        Unheeded(_of("tracker", "keep_candidates", "resume"), "no run is written here"),
        Unheeded(
            _of("prompts.path", "prompts.limit"),
            "is not read beside prompt=TEXT; expected one or the other",
            lambda config: config.prompt is not None,
        ),
    ],
    "record": [
        SINGLE,
        Unheeded(
            DECODING,
            "comes from the run, run=DIR, whose texts are recorded; expected one or the other",
            lambda config: config.run is not None,
        ),
        LEARNING,
    ],
    "costs": [
        SINGLE,
        Unheeded(
            _of("proposer", "tree", "judges", "pace"),
            """every proposer is timed in shapes of its own; expected proposers=["NAME OPTIONS"]""",
        ),
        Unheeded(
            _of("online", "loss"), "the weights of drafts stay as they are while steps are timed"
        ),
        Unheeded(_of("verification"), 'expected it among options, options=["verification=block"]'),
        Unheeded(_of("tracker", "keep_candidates", "resume"), "no run is written here"),
        Unheeded(_of("cache", "verifier.cache"), "steps are timed with all cells of a text kept"),
        Unheeded(_of("experts"), "experts of a sparse verifier are counted here anyway, untimed"),
    ],
    "calibrate": [
        SINGLE,
        Unheeded(_of("tree"), "no tree is grown here; num_nodes=N is the one that is printed"),
        Unheeded(_of("data.held_out_split", "data.held_out_share"), "nothing is held out here"),
        Unheeded(_of("draft"), "heads draft here; expected proposer=draft_model, too", _by_heads),
        Unheeded(
            _of("data", "sampling", "batch", "seed", "max_children"),
            "comes from the recording; expected another recording, or data.path in its place",
            lambda config: config.recording is not None,
        ),
        Unheeded(
            _of("sampling", "max_children"),
            "is for drawn children only; expected positional=true, too",
            lambda config: not config.positional,
        ),
    ],
    "train": [
        Unheeded(_of("hydra.sweep"), "is where sweeps go, with -m; expected output=DIR"),
        Unheeded(_of("decode"), "is what a sweep decodes with; expected -m, too"),
        Unheeded(
            _of("data.held_out_share"),
            "is of data without held-out ones; expected no data.held_out_path",
            lambda config: config.data.held_out_path is not None,
        ),
        Unheeded(
            _of("evaluation.prompts_limit"),
            "is of evaluation.prompts; expected that, too",
            lambda config: config.evaluation.prompts is None,
        ),
        Unheeded(
            _of("evaluation.num_prompts"),
            "is of held-out samples; expected evaluation.prompts_limit",
            lambda config: config.evaluation.prompts is not None,
        ),
        Unheeded(
            _of("loss", "tree", "sampling", "verifier", "evaluation", "dtype", "data.max_length"),
            "is of heads, exits and drafts; expected train=medusa, or another of these",
            _is_alone,
        ),
        Unheeded(
            _of("distill"),
            "is of the verifier's own answers; expected distill.path=FILE, too",
            lambda config: config.distill.path is None,
        ),
        Unheeded(
            _of("tuning"), "is of joint=true; expected that, too", lambda config: not config.joint
        ),
    ],
}


def require_heeded(command: str, config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse an option on the command line that does nothing in this configuration.

    Raises:
        UserError: with what is meant instead.
    """
    for text in overrides:
        name = text.split("=")[0].lstrip("+~").split("@")[0].replace("/", ".")
        for each in UNHEEDED.get(command, ()):
            if _names(each.options, name) and not _is_off(text) and each.when(config):
                raise UserError(f"{text}: {each.instead}")


def _names(options: frozenset[str], name: str) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:count]) in options for count in range(1, len(parts) + 1))


def _is_off(text: str) -> bool:
    """Whether an option has the value that leaves it off: `distill.path=null` says nothing."""
    value: Any = text.partition("=")[2]
    return value in ("null", "[]")
