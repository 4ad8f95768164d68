"""From a turn of a prompt to the tokens that a model reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from specdec.core.errors import UserError, require
from specdec.prompts.load import Message, Prompt

if TYPE_CHECKING:  # transformers takes seconds to import; reading prompts should not wait for it
    from transformers import PreTrainedTokenizerBase

FIELD = "prompts.chat_template"
MODES = ("auto", "chat", "raw")


@dataclass(frozen=True)
class Rendered:
    """A prompt as the model gets it; `token_ids` are those of `text`, special tokens included."""

    text: str
    token_ids: tuple[int, ...]


def messages_for_turn(prompt: Prompt, answers: Sequence[str]) -> tuple[Message, ...]:
    """Return the conversation so far and the turn to answer next, the one after `answers`."""
    turn = len(answers)
    if turn >= prompt.num_turns:
        raise IndexError(f"prompt {prompt.prompt_id!r} has {prompt.num_turns} turns, all answered")
    messages: list[Message] = []
    for asked, answer in zip(prompt.turns, answers, strict=False):
        messages += [*asked, Message("assistant", answer)]
    return (*messages, *prompt.turns[turn])


def render_turn(
    prompt: Prompt,
    answers: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    mode: str = "auto",
) -> Rendered:
    """Render the turn that comes after `answers` (the model's own, one for each turn before).

    Args:
        mode: `chat` puts every prompt through the tokenizer's chat template, bare text as one user
            message; `raw` joins the messages with blank lines, for base models; `auto` is `chat`
            for messages if the tokenizer has a template, and `raw` for the rest.

    Raises:
        UserError: there is no chat template, it refuses the messages, or no token comes out.
    """
    require(mode in MODES, FIELD, mode, "one of " + ", ".join(MODES))
    messages = messages_for_turn(prompt, answers)
    templated = mode == "chat" or (mode == "auto" and not prompt.raw and _has_template(tokenizer))
    if templated:
        text = _apply_template(prompt.prompt_id, messages, tokenizer)
    else:
        text = "\n\n".join(message.content for message in messages)
    # A template writes the special tokens itself: the tokenizer would begin the text twice.
    token_ids = tokenizer(text, add_special_tokens=not templated)["input_ids"]
    if not token_ids:
        raise UserError(f"prompt {prompt.prompt_id!r}: no tokens; expected text of at least one")
    return Rendered(text, tuple(token_ids))


def _has_template(tokenizer: "PreTrainedTokenizerBase") -> bool:
    return bool(tokenizer.chat_template)


def _apply_template(
    prompt_id: str, messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase"
) -> str:
    if not _has_template(tokenizer):
        raise UserError(f"{FIELD}='chat': the tokenizer has no chat template; expected auto or raw")
    rows = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(rows, add_generation_prompt=True, tokenize=False)
    except (TemplateError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"prompt {prompt_id!r}: the chat template refuses it ({reason}); "
            f"expected other roles, or {FIELD}=raw"
        ) from None
    return str(text)
