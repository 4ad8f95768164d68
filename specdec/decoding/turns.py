"""From prompts to requests: rendered as the verifier reads them, turn by turn."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from typing import Any

from specdec.core.errors import UserError
from specdec.core.narrowing import is_sequence
from specdec.core.protocols import SourceReader
from specdec.core.trace import PromptKey, Trace
from specdec.decoding.request import Request
from specdec.prompts import AUTO, Message, Prompt, Rendered, Rendering, answer_of, render_turn

# What can be decoded; bare text is continued as it stands.
Decodable = Request | Prompt | str
CONTEXT = "context"  # why a text ended: there was no more room
REFUSED = "refused"  # by the chat template, which did not take the answers before
EXPECTED = "text, prompts as load_prompts returns them, or sd.Request(name, verifier.encode(text))"


def decode_turns(
    prompts: Sequence[Prompt],
    request: Callable[[Prompt, Sequence[str]], Request],
    stream: Callable[[Sequence[Request]], Iterator[Trace]],
    tokenizer: Any,
    room: int,
) -> Iterator[Trace]:
    """Decode prompts turn by turn; a later turn is asked after the decoder's own answers.

    Where these make it `room` tokens long or longer, the turn ends at once, without a token. Where
    the template does not take them, this turn and those behind it do.
    """
    answers: dict[PromptKey, list[str]] = {prompt.key: [] for prompt in prompts}
    refused: set[PromptKey] = set()
    for turn in range(max((prompt.num_turns for prompt in prompts), default=0)):
        fitting: list[Request] = []
        ended: list[Trace] = []
        for prompt in (prompt for prompt in prompts if prompt.num_turns > turn):
            next_request = (
                None if prompt.key in refused else _next_request(prompt, answers, request)
            )
            if next_request is None:
                refused.add(prompt.key)
                ended.append(_unanswered(prompt, turn, 0, REFUSED))
            elif turn == 0 or len(next_request.token_ids) < room:
                fitting.append(next_request)
            else:
                ended.append(_unanswered(prompt, turn, len(next_request.token_ids), CONTEXT))
        for trace in chain(stream(fitting) if fitting else (), ended):
            answers[trace.prompt_key].append(answer_of(trace, tokenizer))
            yield trace


def _next_request(
    prompt: Prompt,
    answers: Mapping[PromptKey, Sequence[str]],
    request: Callable[[Prompt, Sequence[str]], Request],
) -> Request | None:
    """Ask for the next turn; None if the template does not take the answers before it."""
    given = answers[prompt.key]
    try:
        return request(prompt, given)
    except UserError:
        if not given:  # nothing that a model said is to blame
            raise
        return None


def _unanswered(prompt: Prompt, turn: int, num_tokens: int, reason: str) -> Trace:
    """Return the trace of a turn that ended before it began."""
    return Trace(
        prompt_id=prompt.prompt_id,
        category=prompt.category,
        turn=turn,
        num_prompt_tokens=num_tokens,
        output_ids=(),
        output_text="",
        finish_reason=reason,
        prefill_seconds=0.0,
        steps=(),
        sample=prompt.sample,
    )


def beforehand(
    prompts: Sequence[Prompt], request: Callable[[Prompt, Sequence[str]], Request]
) -> list[Request]:
    """Return every turn as if all answers before it were empty: as short as it can be.

    Samples of a prompt are rendered once.
    """

    @cache
    def first(prompt: Prompt, turn: int) -> Request:
        return request(prompt, [""] * turn)

    return [
        replace(first(replace(prompt, sample=0), turn), sample=prompt.sample)
        for prompt in prompts
        for turn in range(prompt.num_turns)
    ]


def rendered(
    prompt: Prompt, answers: Sequence[str], verifier: object, how: Rendering = AUTO
) -> Rendered:
    """Render the turn that comes after `answers` as the verifier reads it.

    Behind a source stands the token that the decoder begins with.

    Raises:
        UserError: the verifier has no tokenizer, or the template refuses the prompt.
    """
    tokenizer: Any = getattr(verifier, "tokenizer", None)
    if tokenizer is None:
        raise UserError(
            f"{prompt.name}: the verifier has no tokenizer; expected sd.Request(name, token_ids)"
        )
    start = (verifier.start_id,) if isinstance(verifier, SourceReader) else ()
    return rendered_before(start, prompt, answers, tokenizer, how)


def rendered_before(
    start: Sequence[int],
    prompt: Prompt,
    answers: Sequence[str],
    tokenizer: Any,
    how: Rendering = AUTO,
) -> Rendered:
    """Render a turn, with `start` behind it, which counts among its tokens.

    Raises:
        UserError: the template refuses the prompt.
    """
    if start and how.max_tokens is not None:
        how = replace(how, max_tokens=max(1, how.max_tokens - len(start)))
    found = render_turn(prompt, answers, tokenizer, how)
    return replace(found, token_ids=(*found.token_ids, *start))


def request_of(
    prompt: Prompt, answers: Sequence[str], verifier: object, how: Rendering = AUTO
) -> Request:
    """Ask for the turn that comes after `answers`."""
    token_ids = rendered(prompt, answers, verifier, how).token_ids
    return Request(
        prompt.prompt_id,
        token_ids,
        prompt.category,
        len(answers),
        where=prompt.where,
        sample=prompt.sample,
    )


def listed(items: object) -> tuple[list[Request], list[Prompt]]:
    """Return requests, or else prompts: of bare texts those of one raw turn, named by number.

    Raises:
        UserError: it is neither of both.
    """
    items = [items] if isinstance(items, Request | Prompt | str) else items
    if not is_sequence(items):
        raise UserError(f"{items!r}: cannot be decoded; expected {EXPECTED}")
    requests = [item for item in items if isinstance(item, Request)]
    named = [_named(item, number) for number, item in enumerate(items)]
    prompts = [item for item in named if isinstance(item, Prompt)]
    if len(items) not in (len(requests), len(prompts)):
        wrong = next((i for i in named if not isinstance(i, Request | Prompt)), named[0])
        raise UserError(f"{wrong!r}: cannot be decoded with the others; expected {EXPECTED}")
    return requests, prompts


def _named(item: object, number: int) -> object:
    if not isinstance(item, str):
        return item
    return Prompt(str(number), "", ((Message("user", item),),), raw=True)
