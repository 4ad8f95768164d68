"""Whether costs are about what is run here: the same runtime, device and threads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specdec.core.errors import UserError
from specdec.lab.measured_on import measured_on
from specdec.lm.hf import HFCausalLM
from specdec.replaying.costs import Costs
from specdec.replaying.costs_file import costs_of_file
from specdec.runtime.choice import AUTO

DECISIVE = ("runtime", "draft_runtime", "device")  # of another one, seconds say nothing
TELLING = (*DECISIVE, "num_threads", "batch")


def costs_to_decode_by(
    where: str, fingerprint: Mapping[str, str], verifier: HFCausalLM, wanted: Mapping[str, Any]
) -> Costs:
    """Read what steps cost that are decoded here next.

    Args:
        where: a file of `specdec-costs`.
        fingerprint: of the verifier.
        verifier: as it is run here.
        wanted: what the user wants of these circumstances, if that is not how the verifier runs
            already; `auto` may choose any runtime.

    Raises:
        UserError: no such file, or it is about another verifier, dtype, runtime or device.
    """
    costs = costs_of_file(where, fingerprint)
    here = {**measured_on(verifier), **wanted}
    unlike = differences(costs, {name: each for name, each in here.items() if each != AUTO})
    if unlike.keys() & set(DECISIVE):
        raise UserError(f"costs={where!r}: {_said(unlike)}; measure anew with specdec-costs")
    _tell(where, unlike)
    return costs


def costs_to_predict_by(where: str, fingerprint: Mapping[str, str], verifier: HFCausalLM) -> Costs:
    """Read what steps cost where nothing is decoded; says for what machine speeds are predicted.

    Raises:
        UserError: no such file, or it is about another verifier or dtype.
    """
    costs = costs_of_file(where, fingerprint)
    here = {name: value for name, value in measured_on(verifier).items() if name in TELLING}
    _tell(where, differences(costs, here))
    return costs


def differences(costs: Costs, here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return, by name, how something was measured and how it is here, where that differs."""
    measured = costs.circumstances
    known = [name for name in TELLING if name in here and name in measured]
    return {name: (measured[name], here[name]) for name in known if measured[name] != here[name]}


def _tell(where: str, unlike: Mapping[str, tuple[Any, Any]]) -> None:
    if unlike:
        print(f"costs={where!r}: {_said(unlike)}: speeds are predicted for what was measured")


def _said(unlike: Mapping[str, tuple[Any, Any]]) -> str:
    measured = ", ".join(f"{name}={value}" for name, (value, _) in unlike.items())
    here = ", ".join(f"{name}={value}" for name, (_, value) in unlike.items())
    return f"measured with {measured}, and this is {here}"
