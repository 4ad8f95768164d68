"""A model that options name, as far as it is known without its weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from specdec.core.digest import Signature, signature
from specdec.core.errors import UserError, first_line, require
from specdec.lm.folder import content_of
from specdec.zoo import ZOO_FOLDER

EXPECTED = "a Hub id or a folder with a model, or zoo:verifier, zoo:draft"
TRUST = "trust_remote_code"  # as transformers call it, also in what they complain about


@dataclass(frozen=True)
class Checkpoint:
    """Where a model lies, which state of it is meant, and whether code of its own may run.

    Args:
        path: a Hub id, a folder, or `zoo:NAME`.
        revision: a branch, a tag or a commit of the Hub; None: the main branch.
        trust_remote_code: run Python files that come with the model, where its configuration asks
            for them.
        field: how complaints name the path; the other options stand beside it.

    Raises:
        UserError: one of them is not what it should be, or a folder has no revisions.
    """

    path: str
    revision: str | None = None
    trust_remote_code: bool = False
    field: str = field(default="verifier.path", compare=False)

    def __post_init__(self) -> None:
        require(isinstance(self.path, str) and bool(self.path), self.field, self.path, EXPECTED)
        trusts = self.trust_remote_code
        require(isinstance(trusts, bool), self.option(TRUST), trusts, "true or false")
        if self.revision is None:
            return
        said, option = self.revision, self.option("revision")
        named = isinstance(said, str) and bool(said)
        require(named, option, said, "a branch, a tag or a commit, in quotes if it is a number")
        if self.path.startswith("zoo:") or Path(self.path).exists():
            raise UserError(
                f"{option}={said!r}: {self.field}={self.path!r} lies here and has one state;"
                " expected null, or a Hub id as the path"
            )

    @classmethod
    def of(cls, node: str | Mapping[str, Any], field: str = "verifier.path") -> "Checkpoint":
        """Read a node of a configuration, whatever else it says; or a path alone."""
        if isinstance(node, str):
            return cls(node, field=field)
        path: Any = node.get("path")
        trusts = node.get(TRUST, False)
        return cls(path, node.get("revision"), trusts, field)

    def option(self, name: str) -> str:
        """Name another option of the model."""
        return f"{self.field.rpartition('.')[0]}.{name}".lstrip(".")

    @property
    def called(self) -> str:
        """How complaints begin."""
        return f"{self.field}={self.path!r}"

    @property
    def at(self) -> str:
        """How complaints name a state that was asked for."""
        return "" if self.revision is None else f" at {self.option('revision')}={self.revision!r}"

    @property
    def source(self) -> str:
        """What transformers call it."""
        try:
            return source(self.path)
        except UserError as error:
            raise UserError(f"{self.field}={error}") from None

    @property
    def how(self) -> dict[str, Any]:
        """The arguments that transformers gets beside it."""
        at = {} if self.revision is None else {"revision": self.revision}
        return {TRUST: self.trust_remote_code, **at}

    @property
    def files(self) -> tuple[Signature, ...]:
        """What changes when a folder does; of the Hub nothing changes within a process."""
        folder = Path(self.source)
        return signature(folder) if folder.is_dir() else ()

    @property
    def commit(self) -> str | None:
        """The commit of the Hub that is meant, once it was read; None of what lies here."""
        if self.files:
            return None
        try:
            found = try_to_load_from_cache(self.source, "config.json", revision=self.revision)
        except ValueError:  # nothing on a Hub is called so
            return None
        return Path(found).parent.name if isinstance(found, str) else None

    @property
    def config(self) -> PreTrainedConfig:
        """Its configuration.

        Raises:
            UserError: there is none, or it is damaged.
        """
        with self.complaining():
            return AutoConfig.from_pretrained(self.source, **self.how)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer, the same object each time.

        Raises:
            UserError: there is none, or it is damaged.
        """
        return _tokenizer(self, self.files)

    @contextmanager
    def complaining(self) -> Iterator[None]:
        """Turn what transformers, or the model's own code, raise into one line for the user."""
        self._refuse_heads()
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # whatever transformers or foreign code raise
            raise UserError(f"{self.called}: {self._reason(error)}") from None

    def _reason(self, error: Exception) -> str:
        if TRUST in str(error) and not self.trust_remote_code:
            return (
                "comes with code of its own, which is not run unasked; read it, and allow it with"
                f" {self.option(TRUST)}=true"
            )
        folder = Path(self.path)
        if folder.is_dir() and not (folder / "config.json").is_file():
            within = sorted(file.parent.name for file in folder.glob("*/config.json"))
            hint = f"; there is one in {', '.join(within[:3])}" if within else ""
            return f"no config.json in that folder{hint}; expected {EXPECTED}"
        return f"not loaded{self.at}; expected {EXPECTED} ({first_line(error)})"

    def _refuse_heads(self) -> None:
        """Say what is there in place of a model; transformers would only miss a `model_type`."""
        try:
            there = content_of(self.path)
        except UserError as error:
            raise UserError(f"{self.called}: {error}") from None
        if there is not None and there.heads is not None:
            raise UserError(
                f"{self.called}: no model; {there.description} proposer.path={self.path}"
            )


# What is remembered of a path is of the files that lay there then.
@lru_cache(maxsize=64)
def _tokenizer(checkpoint: Checkpoint, files: tuple[Signature, ...]) -> PreTrainedTokenizerBase:
    with checkpoint.complaining():
        return AutoTokenizer.from_pretrained(checkpoint.source, **checkpoint.how)


def source(path: str) -> str:
    """Turn `zoo:NAME` into a folder; anything else is what it is.

    Raises:
        UserError: there is no such model in the zoo.
    """
    if not path.startswith("zoo:"):
        return path
    folder = ZOO_FOLDER / path.removeprefix("zoo:")
    if not (folder / "config.json").is_file():
        raise UserError(f"{path!r}: not in the zoo; expected {EXPECTED}")
    return str(folder)


def on_card(path: str, commit: str | None) -> str:
    """Return what cards call a model: `somebody/model` at 1a2b3c."""
    return f"`{path}`" if commit is None else f"`{path}` at {commit}"


def name_of(source: str) -> str:
    """Turn a folder of the zoo back into `zoo:NAME`: where it lies differs between machines."""
    folder = Path(source).resolve()
    return f"zoo:{folder.name}" if folder.parent == ZOO_FOLDER.resolve() else source
