"""Is an arm what it should be? Looked at before a model is loaded."""

from specdec.core.errors import require, require_int
from specdec.decoding.request import require_samples
from specdec.decoding.stopping import Stopping
from specdec.lab.arm import stop_strings_of
from specdec.lab.compatibility import require_parts_fit
from specdec.lab.inputs import require_inputs
from specdec.lab.spec import ArmSpec
from specdec.results.tracking import log_with

YES_OR_NO = "true or false"


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
    require(isinstance(spec.resume, bool), "resume", spec.resume, YES_OR_NO)
    log_with(spec.tracker)
    require_samples(spec.prompts.num_samples, spec.sampling.build())
    lossy = spec.allow_lossy
    require(isinstance(lossy, bool), "verification.allow_lossy", lossy, YES_OR_NO)
    require_parts_fit(spec)
    for name in ("min_new_tokens", "max_new_tokens"):
        if spec.options[name] is not None:
            require_int(name, spec.options[name], 0)
    for name in ("ignore_eos", "log_probs"):
        require(isinstance(spec.options[name], bool), name, spec.options[name], YES_OR_NO)
    strings = stop_strings_of(spec)
    Stopping(spec.max_new_tokens, frozenset(), strings or (), show=lambda ids: "")
