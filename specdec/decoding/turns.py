"""From prompts to requests: rendered as the verifier reads them, turn by turn."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from specdec.core.errors import UserError
from specdec.core.trace import Trace
from specdec.decoding.request import Request
from specdec.prompts import Message, Prompt, Rendered, render_turn

# What can be decoded; bare text is continued as it stands.
Asked = Request | Prompt | str
EXPECTED = "text, prompts as load_prompts returns them, or sd.Request(name, verifier.encode(text))"


def decode_turns(
    prompts: Sequence[Prompt],
    request: Callable[[Prompt, Sequence[str]], Request],
    stream: Callable[[Sequence[Request]], Iterator[Trace]],
) -> Iterator[Trace]:
    """Decode prompts turn by turn; a later turn is asked after the decoder's own answers."""
    answers: dict[str, list[str]] = {prompt.prompt_id: [] for prompt in prompts}
    for turn in range(max((prompt.num_turns for prompt in prompts), default=0)):
        asked = [prompt for prompt in prompts if prompt.num_turns > turn]
        for trace in stream([request(prompt, answers[prompt.prompt_id]) for prompt in asked]):
            answers[trace.prompt_id].append(trace.output_text)
            yield trace


def beforehand(
    prompts: Sequence[Prompt], request: Callable[[Prompt, Sequence[str]], Request]
) -> list[Request]:
    """Return every turn as if all answers before it were empty: as short as it can be."""
    return [request(prompt, [""] * turn) for prompt in prompts for turn in range(prompt.num_turns)]


def rendered(
    prompt: Prompt, answers: Sequence[str], verifier: object, mode: str = "auto"
) -> Rendered:
    """Render the turn that comes after `answers` as the verifier reads it.

    Raises:
        UserError: the verifier has no tokenizer, or the template refuses the prompt.
    """
    tokenizer: Any = getattr(verifier, "tokenizer", None)
    if tokenizer is None:
        raise UserError(
            f"prompt {prompt.prompt_id}: the verifier has no tokenizer; expected"
            " sd.Request(name, token_ids)"
        )
    return render_turn(prompt, answers, tokenizer, mode)


def request_of(prompt: Prompt, answers: Sequence[str], verifier: object) -> Request:
    """Ask for the turn that comes after `answers`."""
    token_ids = rendered(prompt, answers, verifier).token_ids
    return Request(prompt.prompt_id, token_ids, prompt.category, len(answers))


def listed(asked: Asked | Sequence[Asked]) -> tuple[list[Request], list[Prompt]]:
    """Return requests, or else prompts: of bare texts those of one raw turn, named by number.

    Raises:
        UserError: it is neither of both.
    """
    items = [asked] if isinstance(asked, Request | Prompt | str) else asked
    if not isinstance(items, Sequence):
        raise UserError(f"{items!r}: cannot be decoded; expected {EXPECTED}")
    requests = [item for item in items if isinstance(item, Request)]
    named = [_named(item, number) for number, item in enumerate(items)]
    prompts = [item for item in named if isinstance(item, Prompt)]
    if len(items) not in (len(requests), len(prompts)):
        wrong = next((i for i in named if not isinstance(i, Request | Prompt)), named[0])
        raise UserError(f"{wrong!r}: cannot be decoded with the others; expected {EXPECTED}")
    return requests, prompts


def _named(item: Asked, number: int) -> Request | Prompt:
    if not isinstance(item, str):
        return item
    return Prompt(str(number), "", ((Message("user", item),),), raw=True)
