"""Is an arm what it should be? Looked at before a model is loaded."""

from specdec.core.errors import require_bool, require_int
from specdec.core.members import require_members
from specdec.decoding.request import require_samples
from specdec.decoding.stopping import Stopping
from specdec.lab.arm import build_pace, stop_strings_of
from specdec.lab.compatibility import require_parts_fit
from specdec.lab.inputs import require_inputs
from specdec.lab.spec import ArmSpec
from specdec.results.tracking import log_with


def check_arm(spec: ArmSpec) -> None:
    """Refuse a wrong option, parts that do not go together, and files that cannot be read.

    Raises:
        UserError: with the option and its value; Unfit where each part is right in itself.
    """
    check_options(spec)
    require_inputs(spec)


def check_options(spec: ArmSpec) -> None:
    """Build what is cheap to build, so that a bad option is refused at once.

    Raises:
        UserError: as of `check_arm`, but for files.
    """
    require_int("batch", spec.batch, 1)
    require_int("seed", spec.seed, 0)
    require_int("keep_candidates", spec.keep_candidates, 0)
    require_bool("resume", spec.resume)
    log_with(spec.tracker)
    require_samples(spec.prompts.num_samples, spec.sampling.build())
    require_bool("verification.allow_lossy", spec.allow_lossy)
    require_parts_fit(spec)
    require_members(build_pace(spec), "pace")
    if spec.min_new_tokens is not None:
        require_int("min_new_tokens", spec.min_new_tokens, 0)
    require_bool("ignore_eos", spec.ignore_eos)
    require_bool("log_probs", spec.log_probs)
    require_bool("experts", spec.experts)
    strings = stop_strings_of(spec)
    Stopping(spec.max_new_tokens, frozenset(), strings or (), show=lambda ids: "")
