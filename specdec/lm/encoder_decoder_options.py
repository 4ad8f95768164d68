"""Which options an encoder-decoder model does not go with."""

from transformers import PreTrainedConfig

from specdec.cache.clear import Clear
from specdec.cache.policy import NONE, CachePolicy
from specdec.cache.sliding_window import SlidingWindow
from specdec.core.errors import UserError
from specdec.runtime.choice import AUTO, EAGER


def require_for_sources(
    config: PreTrainedConfig, cache: CachePolicy | str | None, runtime: str, called: str
) -> None:
    """Refuse what a model with an encoder cannot be asked for; complaints begin `called`.

    Raises:
        UserError: it is a runtime with programs, or a cache that forgets, or none.
    """
    if not config.is_encoder_decoder:
        return
    what = f"{called}: {config.model_type} is an encoder-decoder model"
    if runtime not in (EAGER, AUTO):
        raise UserError(f"{what}, which is run by runtime={EAGER} alone, not by {runtime!r}")
    kept = "which keeps all cells of its source and its text"
    if cache == NONE:
        raise UserError(f"{what}, {kept}; expected cache=error, not verifier.cache={NONE}")
    if isinstance(cache, SlidingWindow | Clear) and _is_limited(cache):
        kind = "sliding_window" if isinstance(cache, SlidingWindow) else "clear"
        raise UserError(f"{what}, {kept}; expected cache=error, not {kind}")


def _is_limited(cache: CachePolicy) -> bool:
    return cache.max_tokens is not None or cache.max_bytes is not None
