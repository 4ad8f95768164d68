"""How training text is read: the options `data.*`, as `prompts.*` are of prompts."""

from dataclasses import dataclass
from typing import Any

from specdec.core.errors import require
from specdec.prompts import Part, Roles, require_options


@dataclass(frozen=True)
class Source:
    """Where training text is, and how its rows are read; `option` names it in complaints."""

    path: str
    option: str
    part: Part
    field: str | None
    roles: Roles

    def __str__(self) -> str:
        """Name it as complaints begin."""
        return f"{self.option}={self.path!r}"


@dataclass(frozen=True)
class Reading:
    """What is told beside the names of files and data sets.

    Args:
        split: which split of a data set; files have none.
        held_out_split: that of the held-out data; None: the same.
        config: which configuration of a data set, if it has several.
        revision: which branch, tag or commit of a data set of the Hub.
        field: the one that holds the text or the messages, in place of those that are known.
        roles: who speaks under names that we do not know, {"bing": "assistant"}.
        template_options: what the chat template gets beside the messages.
        strict: refuse the data for one unusable row, in place of leaving it out.
        tokens_path: a folder for the tokens, made once for all runs; None: in the user's cache.

    Raises:
        UserError: one of them is not what it should be.
    """

    split: str = "train"
    held_out_split: str | None = None
    config: str | None = None
    revision: str | None = None
    field: str | None = None
    roles: Any = None
    template_options: Any = None
    strict: bool = False
    tokens_path: str | None = None

    def __post_init__(self) -> None:
        self.source("", "data.path")
        self.source("", "data.held_out_path")
        for name in ("field", "tokens_path"):
            value = getattr(self, name)
            good = value is None or (isinstance(value, str) and bool(value))
            kind = "the name of a field" if name == "field" else "a folder"
            require(good, f"data.{name}", value, f"{kind}, or null")
        require_options(self.template_options, "data.template_options")
        require(isinstance(self.strict, bool), "data.strict", self.strict, "true or false")

    def source(self, path: str, option: str) -> Source:
        """Return where the text of an option is."""
        own = self.held_out_split if option == "data.held_out_path" else None
        part = Part(self.split if own is None else own, self.config, self.revision, option)
        return Source(path, option, part, self.field, Roles(self.roles, "data.roles"))

    @property
    def options(self) -> dict[str, Any]:
        """What the chat template gets beside the messages."""
        return dict(self.template_options or {})
