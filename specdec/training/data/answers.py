"""Samples of a conversation: each answer behind the tokens that decoding would ask for it with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from specdec.core.errors import RowError, first_line
from specdec.prompts import Conversation, Message, by_template
from specdec.prompts.message import UNSAID, has_content
from specdec.training.data.left_out import LeftOut

# Stands in an answer's place, to see what a template writes around it; no text has it by chance.
MARK = "\N{SYMBOL FOR START OF TEXT}specdec\N{SYMBOL FOR END OF TEXT}"
NO_THOUGHT = "no thought, where the invitation opens one"


@dataclass(frozen=True)
class Answer:
    """What a template writes before an answer, as decoding asks for it, and what is then said."""

    prompt: str
    said: str
    note: str = ""  # what is otherwise than one might think


@dataclass(frozen=True)
class AnswerSplitter:
    """Turns conversations into token ids [T] and marks [T]: whether it is an answer's.

    An answer is rendered as the last one, behind the very prompt that decoding would render. Where
    the next prompt begins with all of it, token for token, both are one sample; else each is one of
    its own: some templates write an answer otherwise once others follow it. Tokens are never of
    both, prompt and answer. What is longer than `length` tokens is cut.
    """

    tokenizer: PreTrainedTokenizerBase
    length: int
    options: Mapping[str, Any]  # of the template

    def samples(
        self, talk: Conversation, where: str, left_out: LeftOut
    ) -> list[tuple[list[int], list[bool]]]:
        """Return the samples of a conversation, and count what is left out of it.

        Raises:
            RowError: nothing of it can be trained on; `where` is how the message begins.
        """
        found: list[tuple[list[int], list[bool]]] = []
        errors: list[RowError] = []
        notes: list[str] = []
        for answer in answers_of(talk, self.tokenizer, self.options, where):
            try:
                prompt_ids, answer_ids = self.tokens(answer, where)
            except RowError as error:
                errors.append(error)
                continue
            if len(prompt_ids) >= self.length:
                errors.append(RowError(where, behind(self.length)))
                break
            if not prompt_ids or not answer_ids:
                errors.append(RowError(where, "an answer of no tokens, or to none"))
                continue
            assert isinstance(answer, Answer)
            notes += [answer.note] if answer.note else []
            self._add(found, prompt_ids, answer_ids)
        if not found:
            raise errors[0] if errors else RowError(where, "no answer to train on")
        for error in errors:
            left_out.add_answer(error)
        for note in notes:
            left_out.add_note(note, where)
        left_out.num_cut += sum(len(token_ids) > self.length for token_ids, _ in found)
        return [(ids[: self.length], counted[: self.length]) for ids, counted in found]

    def tokens(self, answer: Answer | RowError, where: str) -> tuple[list[int], list[int]]:
        """Return the tokens of the prompt, as decoding has them, and those of the answer.

        Raises:
            RowError: there is no answer, or the tokenizer does not take it.
        """
        if isinstance(answer, RowError):
            raise answer
        prompt_ids = tokens_alone(answer.prompt, self.tokenizer, where)
        whole = tokens_alone(answer.prompt + answer.said, self.tokenizer, where)
        if whole[: len(prompt_ids)] == prompt_ids:
            return prompt_ids, whole[len(prompt_ids) :]
        return prompt_ids, tokens_alone(answer.said, self.tokenizer, where)  # no token is of both

    def _add(
        self,
        found: list[tuple[list[int], list[bool]]],
        prompt_ids: list[int],
        answer_ids: list[int],
    ) -> None:
        before, counted = found.pop() if found else ([], [])
        if prompt_ids[: len(before)] != before:
            found.append((before, counted))
            before, counted = [], []
        marks = [False] * (len(prompt_ids) - len(before)) + [True] * len(answer_ids)
        found.append((prompt_ids + answer_ids, counted + marks))


def tokens_of(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Tokenize texts as they stand: a template has written the special tokens itself."""
    encoded: Any = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    return encoded["input_ids"]


def end_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the end-of-text token, if there is one."""
    end: Any = tokenizer.eos_token_id
    return [] if end is None else [int(end)]


def tokens_alone(text: str, tokenizer: PreTrainedTokenizerBase, where: str) -> list[int]:
    """Tokenize one text.

    Raises:
        RowError: the tokenizer does not take it; `where` is how the message begins.
    """
    try:
        return tokens_of([text], tokenizer)[0]
    except Exception as error:  # whatever a tokenizer makes of text that it cannot take
        raise RowError(where, f"cannot be tokenized ({first_line(error)})") from None


def behind(length: int) -> str:
    """Say why an answer is left out."""
    return f"the answer begins behind {length} tokens"


def answers_of(
    talk: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    options: Mapping[str, Any],
    where: str,
) -> Iterator[Answer | RowError]:
    """Yield the answers of a conversation, or in place of one why it is none to train on."""
    for turn, message in enumerate(talk.messages):
        if message.answers:
            try:
                _require_answer(talk, turn, where)
                yield _answer(talk, turn, tokenizer, options, where)
            except RowError as error:
                yield error


def prompts_of_answers(
    talk: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    options: Mapping[str, Any],
    where: str,
) -> Iterator[tuple[int, str | RowError]]:
    """Yield the place of each answer and what decoding would ask for it with, or why it cannot."""
    for turn, message in enumerate(talk.messages):
        if message.answers:
            try:
                _require_question(talk, turn, where)
                yield turn, by_template(first(talk, turn), tokenizer, options, True, where)
            except RowError as error:
                yield turn, error


def first(talk: Conversation, number: int) -> Conversation:
    """Return a conversation as it was after so many messages."""
    return replace(talk, messages=talk.messages[:number])


def _require_question(talk: Conversation, turn: int, where: str) -> None:
    if all(message.answers for message in talk.messages[:turn]):
        raise RowError(where, "an answer before anything is asked")


def _require_answer(talk: Conversation, turn: int, where: str) -> None:
    _require_question(talk, turn, where)
    message = talk.messages[turn]
    if not has_content(message.content) and not any(message.row.get(name) for name in UNSAID):
        raise RowError(where, "an empty answer")


def _answer(
    talk: Conversation,
    turn: int,
    tokenizer: PreTrainedTokenizerBase,
    options: Mapping[str, Any],
    where: str,
) -> Answer:
    def rendered(messages: Sequence[Message], invite: bool, **given: Any) -> str:
        shown = replace(talk, messages=tuple(messages), given={**talk.given, **given})
        return by_template(shown, tokenizer, options, invite, where)

    before, message = talk.messages[:turn], talk.messages[turn]
    prompt, answered = rendered(before, True), rendered([*before, message], False)

    def writes(message: Message, **given: Any) -> bool:
        """Whether it makes a difference what the message and what is given do not have."""
        try:
            return rendered([*before, message], False, **given) != answered
        except RowError:
            return True

    said = [name for name in UNSAID if message.row.get(name)]
    unwritten = [name for name in said if not writes(_without(message, name))]
    if unwritten and unwritten == said and not has_content(message.content):
        names = " and ".join(f"`{name}`" for name in unwritten)
        raise RowError(where, f"an answer of {names} alone, which the chat template leaves out")
    if talk.given.get("tools") and not writes(message, tools=None):
        unwritten.append("tools")
    note = f"`{unwritten[0]}` that the chat template does not write" if unwritten else ""
    if answered.startswith(prompt):
        return Answer(prompt, answered[len(prompt) :], note)
    # The invitation writes more than what stands before an answer: it opens a thought.
    marked = Message(message.role, MARK, {**message.row, "content": MARK})
    around, _, ending = rendered([*before, marked], False).partition(MARK)
    header = _shared(prompt, around, answered)
    if len(header) < len(rendered(before, False)) or not answered[len(header) :]:
        reason = "the chat template writes a question otherwise once it is answered"
        raise RowError(where, reason)
    opened = prompt[len(header) :]
    own = message.content.lstrip() if isinstance(message.content, str) else ""
    if opened.strip() and own.startswith(opened.strip()):
        rest = own.removeprefix(opened.strip()).removeprefix(opened[len(opened.rstrip()) :])
        return Answer(prompt, rest + ending, note)
    return Answer(header, answered[len(header) :], NO_THOUGHT)


def _shared(*texts: str) -> str:
    """Return what all texts begin with."""
    places = enumerate(zip(*texts, strict=False))
    end = next((place for place, each in places if len(set(each)) > 1), min(map(len, texts)))
    return texts[0][:end]


def _without(message: Message, name: str) -> Message:
    row = {key: value for key, value in message.row.items() if key != name}
    return Message(message.role, message.content, row)
