"""From a Hub id or a folder to a model that is proven to decode trees rightly, or a refusal."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from specdec.cache.policy import CachePolicy
from specdec.core.digest import Signature, signature
from specdec.core.errors import UserError
from specdec.lm.adapter import merged
from specdec.lm.cached_as import cached_as
from specdec.lm.check import prove
from specdec.lm.check_encoder_decoder import no_trees_of
from specdec.lm.check_prefix import prefix_error
from specdec.lm.check_states import states_differ
from specdec.lm.checkpoint import Checkpoint
from specdec.lm.devices import DTYPES, settled_dtype
from specdec.lm.draft_vocabulary import vocabulary_between
from specdec.lm.from_checkpoint import from_checkpoint
from specdec.lm.hf import HFCausalLM
from specdec.lm.loadable import refuse_unsupported, require_loadable
from specdec.lm.mask import PREFIX_LM
from specdec.lm.placement import Placement
from specdec.lm.quantization import (
    INT8,
    method_of,
    quantized,
    while_loading,
)
from specdec.lm.translation import SAME


def load(
    path: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    attention: str | None = None,
    vocabulary_of: str | Mapping[str, Any] | None = None,
    field: str = "path",
    max_length: int | None = None,
    adapter: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    runtime: str = "eager",
    quantization: str | None = None,
    cache: CachePolicy | str | None = None,
    tp_plan: str | None = None,
    vocabulary: str = SAME,
) -> HFCausalLM:
    """Load a model and its tokenizer; the weights are shared with earlier loads of the same.

    Args:
        path: a Hub id, a folder, or `zoo:verifier` and `zoo:draft` for the embedded family.
        device: where it runs: cpu, cuda, cuda:1, or auto: spread over all GPUs and, what they
            cannot hold, the CPU; a draft model beside its verifier's vocabulary head.
        dtype: float32, bfloat16, float16, or auto: bfloat16 where the device computes in it.
        attention: transformers' `attn_implementation`; by default sdpa where the model has it. Or
            prefix_lm: prompts see themselves in both directions, by the default implementation.
        vocabulary_of: another model whose tokens must be the same, but for more at the end of
            either: a draft's are its verifier's. Its path, or `path` with the two last options.
        field: how error messages name the path, where it is not this parameter that was told.
        max_length: tokens of context that may be used; by default what its configuration says.
        adapter: a folder of LoRA weights that are merged into the model's.
        revision: a branch, a tag or a commit of the Hub.
        trust_remote_code: run code that comes with the model; nobody has looked at what it does.
        runtime: how steps are run: eager, compiled, cuda_graphs (on a GPU), or auto: the fastest
            that is worth its preparation.
        quantization: round the weights: int8, int4, bnb_8bit or bnb_4bit; see
            `specdec.lm.quantization`. None: they are as the checkpoint has them.
        cache: what becomes of the keys and values of a text that grows: a policy of
            `specdec.cache`, or none: every step reads the whole text again; None: all
            are kept.
        tp_plan: auto: each process of torchrun holds a part of each weight, by the plan that
            transformers has for the model; None: each holds all.
        vocabulary: same: the tokens of `vocabulary_of`. Of a draft with another tokenizer
            intersection, to draft the tokens that both have, or strings, to draft text.

    Returns:
        The model behind the protocol `CausalLM`, proven to decode trees rightly.

    Raises:
        UserError: no such model, revision or device, another vocabulary, code that is not trusted,
            or a model that trees cannot be decoded with.
    """
    path = str(path) if isinstance(path, Path) else path
    require_loadable(
        path,
        device,
        dtype,
        attention,
        vocabulary_of,
        field,
        max_length,
        adapter,
        revision,
        trust_remote_code,
        runtime,
        quantization,
        cache,
        tp_plan,
        vocabulary,
    )
    checkpoint = Checkpoint(path, revision, trust_remote_code, field)
    there = _placement(device, vocabulary_of, tp_plan)
    kind, adapted = DTYPES[settled_dtype(dtype, there.device)], _signature_of(adapter)
    prompt_mask = PREFIX_LM if attention == PREFIX_LM else None
    implementation = None if prompt_mask else attention
    model, error, differ, no_trees = _proven(
        checkpoint, checkpoint.files, there, kind, implementation, adapter, adapted, quantization
    )
    if prompt_mask:
        error = max(error, prefix_error(model, checkpoint.called))
    given = (checkpoint.tokenizer, error, differ, max_length, runtime)
    found = cached_as(cache, model, *given, prompt_mask=prompt_mask)
    found.no_trees = no_trees
    found.commit = checkpoint.commit
    found.quantization = quantization or method_of(checkpoint.config)
    other = None if vocabulary_of is None else Checkpoint.of(vocabulary_of)
    found.translation = vocabulary_between(checkpoint, other, vocabulary, attention)
    if there.is_spread:
        _heads_of_spread[checkpoint] = found.device
    return found


# Where the logits of models that are spread over devices come out.
_heads_of_spread: dict[Checkpoint, torch.device] = {}


def _placement(
    device: str, vocabulary_of: str | Mapping[str, Any] | None, tp_plan: str | None = None
) -> Placement:
    """Say where a model goes: a draft model is not spread, but goes where its verifier says."""
    found = Placement.of(device, tp_plan)
    if not found.is_spread or vocabulary_of is None:
        return found
    return Placement(_heads_of_spread.get(Checkpoint.of(vocabulary_of), found.device))


def _signature_of(adapter: str | None) -> tuple[Signature, ...]:
    return () if adapter is None else signature(Path(adapter))


# A verifier and its draft, and those of the job before: a sweep over models must not keep them all.
@lru_cache(maxsize=4)
def _proven(
    checkpoint: Checkpoint,
    files: tuple[Signature, ...],
    placement: Placement,
    dtype: torch.dtype,
    attention: str | None,
    adapter: str | None,
    adapter_files: tuple[Signature, ...],
    quantization: str | None,
) -> tuple[PreTrainedModel, float, str | None, str | None]:
    """Load, prove and remember one set of weights; returns what was found about it beside it."""
    refuse_unsupported(checkpoint.config, checkpoint.called)
    with checkpoint.complaining():
        rounding = while_loading(quantization, dtype)
        rounds = rounding is not None or method_of(checkpoint.config) is not None
        how = placement.arguments(rounds)
        if rounding is not None:
            how["quantization_config"] = rounding
        model = from_checkpoint(checkpoint, dtype, attention, how)
        if adapter is not None:
            try:
                model = merged(model, adapter)
            except UserError as error:
                raise UserError(f"{checkpoint.called}: {error}") from None
        placement.placed(model)
        model = quantized(model) if quantization == INT8 else model
        model.eval()
    error = prove(model, checkpoint.called)
    return model, error, states_differ(model), no_trees_of(model)
