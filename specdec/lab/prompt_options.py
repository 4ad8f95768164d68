"""The options `prompts.*`: which prompts there are, how they are rendered, which of them fit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from specdec.core.errors import UserError, require_bool, require_int
from specdec.decoding.request import Request
from specdec.decoding.turns import beforehand
from specdec.prompts import Prompt, Rendering, Roles, load_prompts


@dataclass(frozen=True)
class PromptOptions:
    """The node `prompts` of a configuration; see `load_prompts` and `Rendering`.

    `max_prompt_tokens` cuts what is longer; with `skip_too_long` such prompts are left out, as are
    those that do not fit the verifier's context.

    Raises:
        UserError: one of them is not what it should be.
    """

    path: str
    limit: int | None = None
    num_samples: int = 1
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    field: str | None = None
    roles: Any = None
    chat_template: str = "auto"
    template_options: Any = None
    max_prompt_tokens: int | None = None
    skip_too_long: bool = False

    def __post_init__(self) -> None:
        require_bool("prompts.skip_too_long", self.skip_too_long)
        require_int("prompts.num_samples", self.num_samples, 1)
        Rendering(self.chat_template, self.template_options, self.max_prompt_tokens)
        Roles(self.roles)

    @property
    def rendering(self) -> Rendering:
        """How prompts become tokens."""
        longest = None if self.skip_too_long else self.max_prompt_tokens
        return Rendering(self.chat_template, self.template_options, longest)

    def load(self) -> list[Prompt]:
        """Read the prompts, each with its samples; this may fail, so before a model is loaded."""
        prompts = load_prompts(
            self.path,
            self.limit,
            self.split,
            self.config,
            self.revision,
            self.field,
            self.roles,
        )
        return [sample for prompt in prompts for sample in prompt.samples(self.num_samples)]

    def room(self, max_length: int) -> int:
        """Return a number of tokens that is too long for a prompt, in a context of `max_length`."""
        if not self.skip_too_long or self.max_prompt_tokens is None:
            return max_length
        return min(max_length, self.max_prompt_tokens + 1)


@dataclass(frozen=True)
class Chosen:
    """Prompts to decode, what they ask for at least, and the ids of those that are left out."""

    prompts: Sequence[Prompt]
    requests: Sequence[Request]
    skipped: Sequence[str]


def chosen(
    prompts: Sequence[Prompt],
    options: PromptOptions,
    request: Callable[[Prompt, Sequence[str]], Request],
    max_length: int,
) -> Chosen:
    """Leave out prompts that are too long, not even counting answers, if that is asked for.

    Raises:
        UserError: none is left.
    """
    requests = beforehand(prompts, request)
    room = options.room(max_length)
    skipped = {each.prompt_id for each in requests if len(each.token_ids) >= room}
    if not options.skip_too_long or not skipped:
        return Chosen(prompts, requests, ())
    kept = [prompt for prompt in prompts if prompt.prompt_id not in skipped]
    if not kept:
        raise UserError(
            f"prompts.skip_too_long=true: all {len(skipped)} prompts have {room} tokens or more"
        )
    left = [each for each in requests if each.prompt_id not in skipped]
    return Chosen(
        kept, left, [p.prompt_id for p in prompts if p.prompt_id in skipped and p.sample == 0]
    )
