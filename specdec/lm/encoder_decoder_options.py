"""Which options an encoder-decoder model does not go with."""

from specdec.cache.clear import Clear
from specdec.cache.policy import NONE, CachePolicy
from specdec.cache.sliding_window import SlidingWindow
from specdec.core.errors import UserError
from specdec.lm.checkpoint import Checkpoint
from specdec.runtime.choice import AUTO, EAGER


def require_plain(checkpoint: Checkpoint, cache: CachePolicy | str | None, runtime: str) -> None:
    """Refuse caches and runtimes that are for decoders alone.

    Raises:
        UserError: `cache` or `runtime` is such a one.
    """
    kind = f"{checkpoint.called}: {checkpoint.config.model_type} is an encoder-decoder model"
    if cache == NONE or (isinstance(cache, SlidingWindow | Clear) and _is_limited(cache)):
        raise UserError(
            f"{kind}, which keeps all cells of its source and its text; expected none"
            f" of cache={_name(cache)}"
        )
    if runtime not in (EAGER, AUTO):
        raise UserError(
            f"{kind}, whose steps run eagerly; expected runtime={EAGER}, not {runtime!r}"
        )


def _is_limited(cache: CachePolicy) -> bool:
    return cache.max_tokens is not None or cache.max_bytes is not None


def _name(cache: CachePolicy | str | None) -> str:
    return type(cache).__name__ if isinstance(cache, CachePolicy) else str(cache)
