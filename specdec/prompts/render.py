"""From a turn of a prompt to the tokens that a model reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import TYPE_CHECKING, Any

from specdec.core.errors import RowError, UserError, first_line, require, require_int
from specdec.prompts.answers import answered
from specdec.prompts.load import GIVEN, OWN_OPTIONS, Conversation, Prompt
from specdec.prompts.message import Message

if TYPE_CHECKING:  # transformers takes seconds to import; reading prompts should not wait for it
    from transformers import PreTrainedTokenizerBase

FIELD, OPTIONS = "prompts.chat_template", "prompts.template_options"
MODES = ("auto", "chat", "raw")


@dataclass(frozen=True)
class Rendering:
    """How prompts become tokens.

    Args:
        mode: `chat` puts every prompt through the tokenizer's chat template, bare text as one user
            message; `raw` joins the messages with blank lines, for base models; `auto` is `chat`
            for messages if the tokenizer has a template, and `raw` for the rest.
        options: what the template gets beside the messages, {"enable_thinking": False}.
        max_tokens: of longer prompts only so many are kept, the last ones; None: all.

    Raises:
        UserError: it is nothing of these, or an option is one that we set ourselves.
    """

    mode: str = "auto"
    options: Mapping[str, Any] | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        require(self.mode in MODES, FIELD, self.mode, "one of " + ", ".join(MODES))
        if self.max_tokens is not None:
            require_int("prompts.max_prompt_tokens", self.max_tokens, 1)
        require_options(self.options, OPTIONS)


def require_options(options: object, field: str) -> None:
    """Refuse what are no options of a chat template, and those that we set ourselves.

    Raises:
        UserError: `field` is how the message names them.
    """
    given = {} if options is None else options
    is_mapping = isinstance(given, Mapping) and all(isinstance(name, str) for name in given)
    require(is_mapping, field, given, "options by name, {enable_thinking: false}")
    assert isinstance(given, Mapping)
    for name in given:
        if name in _our_arguments():
            raise UserError(f"{field}: {name!r} is not the template's to know; expected others")


def _our_arguments() -> set[str]:
    from transformers import PreTrainedTokenizerBase

    known = set(signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    return (known | {"messages"}) - {"self", "kwargs"}


AUTO = Rendering()


@dataclass(frozen=True)
class Rendered:
    """A prompt as the model gets it; of its tokens `num_cut` were cut off at the beginning."""

    text: str
    token_ids: tuple[int, ...]
    num_cut: int = 0


def messages_for_turn(
    prompt: Prompt, answers: Sequence[str], by_channel: bool = False
) -> tuple[Message, ...]:
    """Return the conversation so far and the turn to answer next, the one after `answers`."""
    turn = len(answers)
    if turn >= prompt.num_turns:
        raise IndexError(f"prompt {prompt.prompt_id!r} has {prompt.num_turns} turns, all answered")
    messages: list[Message] = []
    for question, answer in zip(prompt.turns, answers, strict=False):
        messages += [*question, answered(answer, by_channel)]
    return (*messages, *prompt.turns[turn])


def render_turn(
    prompt: Prompt,
    answers: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    how: Rendering = AUTO,
) -> Rendered:
    """Render the turn that comes after `answers` (the model's own, one for each turn before).

    Raises:
        UserError: there is no chat template, it refuses the messages, they hold what only a
            template can say, or no token comes out.
    """
    has_template = bool(tokenizer.chat_template)
    templated = how.mode == "chat" or (how.mode == "auto" and not prompt.raw and has_template)
    if templated:
        text = _by_template(prompt, answers, tokenizer, how.options or {})
    else:
        _require_plain(prompt, how)
        messages = messages_for_turn(prompt, answers)
        text = "\n\n".join(message.text(prompt.name) for message in messages)
    # A template writes the special tokens itself: the tokenizer would begin the text twice.
    token_ids = _tokens(prompt, text, tokenizer, add_special_tokens=not templated)
    rendered = Rendered(text, tuple(token_ids))
    num_cut = 0 if how.max_tokens is None else max(0, len(token_ids) - how.max_tokens)
    return replace(rendered, token_ids=rendered.token_ids[num_cut:], num_cut=num_cut)


def _tokens(
    prompt: Prompt, text: str, tokenizer: "PreTrainedTokenizerBase", add_special_tokens: bool
) -> list[int]:
    try:
        token_ids = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
    except Exception as error:  # whatever a tokenizer makes of text that it cannot take
        raise UserError(f"{prompt.name}: cannot be tokenized ({first_line(error)})") from None
    if not token_ids:
        raise UserError(f"{prompt.name}: no tokens; expected text of at least one")
    return token_ids


def _require_plain(prompt: Prompt, how: Rendering) -> None:
    """Refuse what would vanish where no template is applied."""
    if how.options:
        shown = dict(how.options)
        raise UserError(
            f"{OPTIONS}={shown}: {prompt.name} goes through none; expected {FIELD}=chat"
        )
    for name in () if prompt.raw else prompt.given:  # bare text is continued as it stands
        raise UserError(
            f"{prompt.name}: only a chat template can say its {name}; expected {FIELD}=chat and a"
            " tokenizer that has one"
        )


def _by_template(
    prompt: Prompt,
    answers: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    options: Mapping[str, Any],
) -> str:
    if not tokenizer.chat_template:
        raise UserError(f"{FIELD}='chat': the tokenizer has no chat template; expected auto or raw")
    refusals: list[RowError] = []
    talks = [messages_for_turn(prompt, answers, by_channel) for by_channel in (False, True)]
    for messages in talks[:1] if talks[0] == talks[1] else talks:
        talk = Conversation(messages, prompt.given)
        try:
            return by_template(talk, tokenizer, options, True, prompt.name)
        except RowError as error:
            refusals.append(error)
    raise UserError(f"{refusals[0]}; expected messages that it knows, or {FIELD}=raw")


def by_template(
    talk: Conversation,
    tokenizer: "PreTrainedTokenizerBase",
    options: Mapping[str, Any],
    invite: bool,
    where: str,
) -> str:
    """Put a conversation through the chat template, with its invitation to answer if `invite`.

    What the conversation itself says of an option goes before `options`. Parts of text are given as
    text to a template that does not know parts.

    Raises:
        RowError: the template refuses it, or does not know parts and there are images among them;
            `where` is how the message begins.
    """
    for name in talk.given.keys() & _our_arguments() - set(GIVEN):
        reason = f"{OWN_OPTIONS}: {name!r} is not the template's to know; expected others"
        raise RowError(where, reason)
    given: dict[str, Any] = {**options, **talk.given, "add_generation_prompt": invite}
    text = _applied(tokenizer, [dict(message.row) for message in talk.messages], given, where)
    spelt = [message for message in talk.messages if _is_spelt(message, text)]
    if not spelt:
        return text
    messages = [
        message.as_text(where) if message in spelt else message for message in talk.messages
    ]
    return _applied(tokenizer, [dict(message.row) for message in messages], given, where)


def _is_spelt(message: Message, text: str) -> bool:
    """Whether a template that knows only text has written a list of parts as Python spells it."""
    return (
        isinstance(message.content, list)
        and bool(message.content)
        and (str(message.content) in text)
    )


def _applied(
    tokenizer: "PreTrainedTokenizerBase",
    rows: list[dict[str, Any]],
    given: Mapping[str, Any],
    where: str,
) -> str:
    try:
        return str(tokenizer.apply_chat_template(rows, **given, tokenize=False))
    except Exception as error:  # a template is a program, and may fail in any way
        reason = f"the chat template refuses it ({first_line(error)})"
        raise RowError(where, reason, reason) from None
