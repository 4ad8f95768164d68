"""What the arms of a comparison are called: by the overrides that tell them apart."""

import re
import shlex
from collections.abc import Sequence

from specdec.core.errors import UserError

BASELINE = "proposer=none"
LONGEST_NAME = 80


def names(arms: Sequence[str]) -> list[str]:
    """Name each arm by its overrides, leaving out those that all arms but the baseline share.

    Nothing is left out where an arm would be left without a name. Arms of one name are numbered.
    """
    overrides = [[text for text in split(arm) if not unnamed(text)] for arm in arms]
    drafting = [each for each in overrides if BASELINE not in each]
    shared = set(drafting[0]).intersection(*drafting) if drafting else set[str]()
    if any(set(each) <= shared for each in overrides):
        shared = set()
    short = [path_safe([text for text in each if text not in shared]) for each in overrides]
    before = [short[:number].count(name) for number, name in enumerate(short)]
    return [
        f"{name}+{count + 1}" if count else name for name, count in zip(short, before, strict=True)
    ]


def split(arm: str) -> list[str]:
    """Cut an arm into its overrides, as a shell would."""
    try:
        return shlex.split(arm)
    except ValueError as error:
        raise UserError(f"arms: {arm!r}: {str(error).lower()}") from None


def unnamed(override: str) -> bool:
    """Whether an override says nothing that an arm is known by."""
    return override.startswith(("judges=", "verification.allow_lossy="))


def path_safe(overrides: Sequence[str]) -> str:
    """Join overrides to a name that is fit for a folder: [2,1] becomes 2-1; what is long is cut."""
    short = [re.sub(r"^(proposer|tree|verification)=", "", text) for text in overrides]
    plain = [re.sub(r"[][\s]", "", text.replace(",", "-")) for text in short]
    return re.sub(r"[^\w.,=+-]", "_", ",".join(plain))[:LONGEST_NAME] or "default"
