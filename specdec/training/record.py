"""What a training is: all that decides on its weights. Only the same training is gone on with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specdec.core.errors import UserError
from specdec.core.vouching import read_note, write_note
from specdec.results.options import identity

NAME = "identity.json"
ON_CARD = (
    *("loss", "joint", "trainer.learning_rate", "trainer.lr_scheduler_type"),
    *("trainer.per_device_train_batch_size", "trainer.gradient_accumulation_steps"),
    *("num_processes", "trainer.seed"),
)
LISTED = 4  # differences in one message


@dataclass(frozen=True)
class Record:
    """A training's options by their names on the command line, and what it runs under.

    `known` is what two trainings share if and only if they are one: files by their content, code by
    its digest. `options` are the same as they were written. Neither holds how long it is trained,
    how often something is written, nor where.
    """

    known: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    config: str = ""  # YAML, as `config.yaml` has it
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def identity(self) -> str:
        """Twelve hex digits."""
        return identity(self.known)

    def card(self) -> dict[str, str]:
        """Return what a card says: the options that matter most, and the versions."""
        found = {
            name.split(".")[-1]: str(self.options[name]) for name in ON_CARD if name in self.options
        }
        versions = self.provenance.get("versions") or {}
        listed = [f"{name} {version}" for name, version in versions.items() if version]
        return {**found, **({"versions": ", ".join(listed)} if listed else {})}

    def write(self, folder: Path) -> None:
        """Note in a folder whose it is.

        Raises:
            Unwritable: it cannot be written.
        """
        write_note(folder / NAME, {"known": self.known, "told": self.options})

    def require_same(self, folder: Path, named: str, instead: str) -> None:
        """Refuse what another training has left in `folder`.

        Args:
            named: how a message names the folder.
            instead: what a message expects.

        Raises:
            UserError: the training of that folder has other options, or does not say which.
        """
        found = read_note(folder / NAME)
        if found is None or not {"known", "told"} <= found.keys():
            raise UserError(
                f"{named}: does not say which training it is of ({NAME}); expected {instead}"
            )
        differing = _differences(_plain(self.known), found["known"])
        if differing:
            listed = [self._difference(name, found) for name in differing[:LISTED]]
            more = f" and {len(differing) - LISTED} more" if len(differing) > LISTED else ""
            raise UserError(
                f"{named}: is of a training with other options: {'; '.join(listed)}{more};"
                f" expected {instead}"
            )

    def _difference(self, name: str, found: Mapping[str, Any]) -> str:
        ours, theirs = self.options.get(name), found["told"].get(name)
        if name not in self.known or name not in found["known"]:
            ours, theirs = (
                side.get(name, "not an option") for side in (self.options, found["told"])
            )
        elif Path(str(ours)).name == Path(str(theirs)).name:  # a file that was changed, or code
            return f"{name} ({'its content' if ours is not None else 'code'} is another now)"
        return f"{name}={ours} (was {theirs})"


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Sequence[str]:
    missing = object()
    names = dict.fromkeys((*ours, *theirs))
    return [name for name in names if ours.get(name, missing) != theirs.get(name, missing)]


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as JSON gives them back."""
    return json.loads(json.dumps(values))
