"""What a caller gives, looked at before anything is done: a mistake gets one line."""

from pathlib import Path

from specdec.core.errors import require, require_kind
from specdec.core.members import require_members
from specdec.core.protocols import Proposer, VerificationRule
from specdec.lm.hf import HFCausalLM
from specdec.lm.vocabularies import require_one_family


def require_verifier(verifier: object) -> None:
    """Refuse the name of a model, or a model of transformers.

    Raises:
        UserError: it is no model of `sd.load`.
    """
    require_kind("verifier", verifier, HFCausalLM, "a model of sd.load(PATH)")


def require_pair(verifier: HFCausalLM, proposer: Proposer, rule: VerificationRule) -> None:
    """Refuse what cannot propose to this verifier, or decide.

    Raises:
        UserError: a part lacks a member of its protocol, or is of another verifier.
    """
    require_members(proposer, "proposer")
    require_members(rule, "verification rule")
    require_one_family(verifier, proposer)


def folder_of(name: str, given: str | Path) -> Path:
    """Return the folder that an argument names.

    Raises:
        UserError: it names none.
    """
    require_kind(name, given, str | Path, "the name of a folder")
    require(bool(str(given)) and not Path(given).is_file(), name, given, "the name of a folder")
    return Path(given)
