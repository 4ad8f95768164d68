"""Under which circumstances a model is measured."""

from typing import Any

from specdec.lm.hf import HFCausalLM
from specdec.results.provenance import provenance


def measured_on(lm: HFCausalLM) -> dict[str, Any]:
    """Collect versions, source state, hardware and how the model runs."""
    return provenance(lm.device, lm.precision, lm.attention, lm.runtime)
