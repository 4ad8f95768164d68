"""How training text is read: the options `data.*`, as `prompts.*` are of prompts."""

from dataclasses import dataclass, replace
from typing import Any

from specdec.core.errors import require, require_share
from specdec.prompts import DatasetPart, Roles, require_options


@dataclass(frozen=True)
class Share:
    """The rows that are held out, `share` of all and evenly spread, or all others."""

    share: float
    is_held_out: bool

    def has(self, number: int) -> bool:
        """Whether the row of a number, from 0, is among them."""
        before, behind = (int(count * self.share + 0.5) for count in (number, number + 1))
        return (behind > before) == self.is_held_out


@dataclass(frozen=True)
class Source:
    """Where training text is, and how its rows are read; `option` names it in complaints."""

    path: str
    option: str
    part: DatasetPart
    field: str | None
    roles: Roles
    share: Share | None = None  # None: every row

    @property
    def name(self) -> str:
        """What notes about it begin with."""
        is_held_out = self.share is not None and self.share.is_held_out
        return "data.held_out_share" if is_held_out else self.option

    def __str__(self) -> str:
        """Name it as complaints begin."""
        return f"{self.option}={self.path!r}"


@dataclass(frozen=True)
class Reading:
    """How data are read, beside the names of files and data sets.

    Args:
        split: which split of a data set; files have none.
        held_out_split: that of the held-out data; None: the same.
        held_out_share: where no held-out data are named, how many of the rows are held out, evenly
            spread; of a text the pieces that it is cut into.
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
    held_out_share: float = 0.05
    config: str | None = None
    revision: str | None = None
    field: str | None = None
    roles: Any = None
    template_options: Any = None
    strict: bool = False
    tokens_path: str | None = None

    def __post_init__(self) -> None:
        self.sources("", "")
        require_share("held_out_share", self.held_out_share, most=0.5)
        for name in ("field", "tokens_path"):
            value = getattr(self, name)
            good = value is None or (isinstance(value, str) and bool(value))
            kind = "the name of a field" if name == "field" else "a folder"
            require(good, name, value, f"{kind}, or null")
        require_options(self.template_options, "template_options")
        require(isinstance(self.strict, bool), "strict", self.strict, "true or false")

    def sources(self, path: str, held_out_path: str | None) -> tuple[Source, Source]:
        """Return what is trained on, and what is held out.

        Without a path of its own that is another split of the data set, if one is named, or else a
        share of the rows of `path`, which are not trained on then.
        """
        learnt = self.source(path, "data.path")
        if held_out_path is not None:
            return learnt, self.source(held_out_path, "data.held_out_path")
        if self.held_out_split is not None and self.held_out_split != self.split:
            part = replace(learnt.part, split=self.held_out_split)
            return learnt, replace(learnt, part=part)
        shares = (Share(self.held_out_share, is_held_out) for is_held_out in (False, True))
        rest, held_out = (replace(learnt, share=share) for share in shares)
        return rest, held_out

    def source(self, path: str, option: str) -> Source:
        """Return where the text of an option is, whole."""
        own = self.held_out_split if option == "data.held_out_path" else None
        part = DatasetPart(self.split if own is None else own, self.config, self.revision, option)
        return Source(path, option, part, self.field, Roles(self.roles, "data.roles"))

    @property
    def options(self) -> dict[str, Any]:
        """What the chat template gets beside the messages."""
        return dict(self.template_options or {})
