"""A model behind the cache that options ask for."""

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from specdec.cache.clear import Clear
from specdec.cache.policy import NONE, CachePolicy
from specdec.cache.sliding_window import SlidingWindow
from specdec.core.errors import UserError
from specdec.lm.accounting import cells_of
from specdec.lm.clearing import ClearingLM
from specdec.lm.encoder_decoder import EncoderDecoderLM
from specdec.lm.hf import HFCausalLM
from specdec.lm.layer_kinds import is_recurrent
from specdec.lm.mask import PREFIX_LM
from specdec.lm.prefix_lm import PrefixLM, RecomputingPrefixLM
from specdec.lm.recomputing import RecomputingLM
from specdec.lm.recurrent import causal_lm
from specdec.lm.sliding import SlidingLM
from specdec.runtime.choice import AUTO, EAGER


def require_cache(cache: object, runtime: str, attention: str | None = None) -> None:
    """Refuse what is no cache, or none that goes with a runtime and an attention.

    Raises:
        UserError: it is not.
    """
    if cache is not None and cache != NONE and not isinstance(cache, CachePolicy):
        expected = "none, or a policy such as sd.SlidingWindow(max_tokens=256)"
        raise UserError(f"cache={cache!r}: expected {expected}")
    if cache == NONE and runtime not in (EAGER, AUTO):
        raise UserError(
            f"cache={NONE!r}: whole texts are read by runtime={EAGER} alone, not by {runtime!r}"
        )
    if attention == PREFIX_LM and isinstance(cache, SlidingWindow | Clear):
        raise UserError(
            f"attention={PREFIX_LM!r}: the cells of a prompt depend on all of it, so none can go or"
            " be read again alone; expected cache=error, or verifier.cache=none"
        )


def require_for_states(config: PreTrainedConfig, cache: object, runtime: str, called: str) -> None:
    """Refuse what layers with states cannot be asked for; complaints begin `called`.

    Raises:
        UserError: it is a runtime with programs, or a cache that forgets.
    """
    if not is_recurrent(config):
        return
    what = f"{called}: {config.model_type} has recurrent layers"
    if runtime not in (EAGER, AUTO):
        raise UserError(f"{what}, which are run by runtime={EAGER} alone, not by {runtime!r}")
    if isinstance(cache, SlidingWindow | Clear):
        kind = "sliding_window" if isinstance(cache, SlidingWindow) else "clear"
        raise UserError(f"{what}, whose states forget nothing; expected cache=error, not {kind}")
    if isinstance(cache, CachePolicy) and cache.max_bytes is not None:
        raise UserError(f"{what}, whose states do not grow; expected cache.max_tokens, not bytes")


def cached_as(
    cache: CachePolicy | str | None,
    model: PreTrainedModel,
    *given: Any,
    prompt_mask: str | None = None,
) -> HFCausalLM:
    """Return a model with a cache of its own; `given` are the other arguments of `HFCausalLM`.

    Raises:
        UserError: the cache is too small.
    """
    if model.config.is_encoder_decoder:
        found = EncoderDecoderLM(model, *given)
        found.max_cells = None if cache is None else limit_of(cache, model)
        return found
    kind = causal_lm if prompt_mask is None else PrefixLM
    if cache == NONE:
        recomputing = RecomputingLM if prompt_mask is None else RecomputingPrefixLM
        return recomputing(model, *given)
    limit = None if cache is None else limit_of(cache, model)
    if limit is None:
        return kind(model, *given)
    if isinstance(cache, SlidingWindow):
        return SlidingLM(cache, limit, model, *given)
    if isinstance(cache, Clear):
        return ClearingLM(cache, limit, model, *given)
    found = kind(model, *given)
    found.max_cells = limit
    return found


def cached_like(lm: HFCausalLM, model: PreTrainedModel) -> HFCausalLM:
    """Return a model with a cache of its own, of all cells, that reads prompts as another does."""
    if isinstance(lm, EncoderDecoderLM):
        longest = max(lm.max_source, lm.max_target)
        return EncoderDecoderLM(model, lm.tokenizer, max_length=longest)
    kind = causal_lm if lm.prompt_mask is None else PrefixLM
    return kind(model, lm.tokenizer, max_length=lm.max_length)


def limit_of(cache: CachePolicy | str, model: PreTrainedModel) -> int | None:
    """Return the cells that a request may keep; None: all. The model may be without weights.

    Raises:
        UserError: not even two fit.
    """
    assert isinstance(cache, CachePolicy)
    if cache.max_bytes is None:
        return cache.limit(1)
    return cache.limit(sum(each.cell_bytes for each in cells_of(model)))
