"""A thousand conversations through templates of unlike habits: masks equal those counted by hand.

Every answer must stand behind the very tokens that decoding would ask for it with, and what counts
must be what the template writes of it: said here once more, in words of our own.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from specdec.core.errors import UserError
from specdec.prompts import Prompt, Rendering, read_message, render_turn
from specdec.training.data.reading import Reading
from specdec.training.data.samples import Samples
from specdec.training.data.tokenizer import train_tokenizer

LENGTH = 400
WORDS = ["why", "a cat", "on the mat", "\u4e8c\U0001f600", " two\nlines ", "{{ 7 }}", "<think>"]
INVITE = "{% if add_generation_prompt %}<bot>{% endif %}"
LAST = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
)
BOT = "{% if m.role == 'assistant' %}<bot>{% else %}<{{ m.role }}>{% endif %}"
TEXT = "{{ m.content if m.content is string else m.content | map(attribute='text') | join }}"
OR_NOTHING = TEXT.replace("m.content", "(m.content or '')")
TEMPLATES = {
    "plain": "{% for m in messages %}" + BOT + TEXT + "</>\n{% endfor %}" + INVITE,
    # Thoughts of answers before the last question are taken out.
    "forgets": LAST + "{% for m in messages %}" + BOT + "{% if m.role == 'assistant' and "
    "loop.index0 < ns.last %}{{ (" + TEXT[3:-3] + ").split('</think>')[-1] }}{% else %}" + TEXT
    + "{% endif %}</>\n{% endfor %}" + INVITE,
    # The answer behind the last question begins with an empty thought, if it has none.
    "empties": LAST + "{% for m in messages %}" + BOT + "{% if m.role == 'assistant' and "
    "loop.index0 > ns.last and '</think>' not in (" + TEXT[3:-3] + ") %}<think></think>{% endif %}"
    + TEXT + "</>\n{% endfor %}" + INVITE,
    # The invitation ends with a space, which begins a token of what follows it.
    "spaced": "{% for m in messages %}{{ m.role }}: " + TEXT + "\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    # Roles alternate; no system, no invitation.
    "strict": "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}[" + TEXT
    + "]{% else %} " + TEXT + "</s>{% endif %}{% endfor %}",
    # Calls and tools are written down, and thoughts that stand beside the content.
    "tools": "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}" + BOT
    + "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}" + OR_NOTHING
    + "{% for c in m.tool_calls or [] %}!{{ c.function | tojson }}{% endfor %}</>\n{% endfor %}"
    + INVITE,
    # The invitation opens a thought, which is taken out of every answer.
    "opens": "{% for m in messages %}" + BOT + "{{ (" + TEXT[3:-3] + ").split('</think>')[-1] "
    "if m.role == 'assistant' else " + TEXT[3:-3] + " }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<bot><think>\n{% endif %}",
}  # fmt: skip


def text_of(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def calls_of(message: dict[str, Any]) -> str:
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return "".join("!" + json.dumps(call, ensure_ascii=False) for call in calls)


def thought_of(message: dict[str, Any]) -> str:
    thought = message.get("reasoning_content")
    return f"({thought})" if thought else ""


SAID: dict[str, Callable[[dict[str, Any]], str]] = {
    "plain": lambda m: text_of(m) + "</>\n",
    "forgets": lambda m: text_of(m) + "</>\n",
    "empties": lambda m: ("" if "</think>" in text_of(m) else "<think></think>")
    + text_of(m) + "</>\n",
    "spaced": lambda m: text_of(m) + "\n",
    "strict": lambda m: " " + text_of(m) + "</s>",
    "tools": lambda m: thought_of(m) + text_of(m) + calls_of(m) + "</>\n",
    # What the invitation has opened is not said again.
    "opens": lambda m: text_of(m).removeprefix("<think>\n") + "</>\n",
}  # fmt: skip


def answer(rng: random.Random) -> dict[str, Any]:
    text = " ".join(rng.choices(["Yes.", "No", "it is", "a cat", "{}"], k=rng.randint(1, 6)))
    kind = rng.randrange(5)
    if kind == 0:
        return {"role": "assistant", "content": f"<think>\nHm, {text}</think>{text}"}
    if kind == 1:
        return {"role": "assistant", "content": text, "reasoning_content": "because"}
    if kind == 2:
        parts = [{"type": "text", "text": text}, {"type": "text", "text": " and"}]
        return {"role": "assistant", "content": parts}
    return {"role": "assistant", "content": text}


def row(rng: random.Random) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.2:
        messages.append({"role": "system", "content": rng.choice(WORDS)})
    if rng.random() < 0.05:
        messages.append({"role": "assistant", "content": "Hello!"})
    for number in range(rng.randint(1, 4)):
        long = 300 if rng.random() < 0.03 else 1
        messages.append({"role": "user", "content": rng.choice(WORDS) * long})
        if rng.random() < 0.1:
            call = {"type": "function", "function": {"name": "f", "arguments": {"n": number}}}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            messages.append({"role": "tool", "content": rng.choice(WORDS)})
        if rng.random() < 0.9:
            messages.append(answer(rng))
    found: dict[str, Any] = {"messages": messages}
    if rng.random() < 0.1:
        found["tools"] = [{"type": "function", "function": {"name": "f"}}]
    return found


def wrong(rng: random.Random) -> Any:
    """Return a line that is no row, or a row that is none to train on."""
    return rng.choice(
        [
            "{", "[]", '{"messages": []}', '{"messages": "x"}', '{"prompt": "x"}',
            '{"conversations": [{"from": "bing", "value": "x"}]}',
            '{"messages": [{"role": "user"}]}',
            '{"messages": [{"role": "user", "content": "\\ud83d"}]}',
            '{"messages": [{"role": "user", "content": 3}]}',
        ]
    )  # fmt: skip


def by_hand(
    row: dict[str, Any], name: str, tokenizer: Any, counts: dict[str, int]
) -> list[tuple[list[int], list[int]]]:
    """Return the prompt and the answer of each sample that a row should give, as token ids."""
    found: list[tuple[list[int], list[int]]] = []
    messages = row["messages"]
    given = {key: row[key] for key in ("tools",) if key in row}
    for turn, message in enumerate(messages):
        before = messages[:turn]
        if message["role"] != "assistant" or all(m["role"] == "assistant" for m in before):
            continue
        if message.get("tool_calls") and name != "tools":
            continue  # nothing of it would be written
        turns = (tuple(read_message("here", m) for m in before),)
        try:
            rendered = render_turn(Prompt("x", "", turns, given=given), [], tokenizer, Rendering())
            tokenizer.apply_chat_template(messages[: turn + 1], tokenize=False, **given)
        except (UserError, TemplateError):
            continue
        prompt = list(rendered.token_ids)
        said = SAID[name](message)
        if name == "opens" and "<think>\n" not in text_of(message):
            # Nothing of it is behind the thought that is opened: as the template writes it.
            prompt = tokenizer(rendered.text.removesuffix("<think>\n"))["input_ids"]
            counts["unopened"] += len(prompt) < LENGTH
        if len(prompt) >= LENGTH:
            break
        whole = tokenizer(tokenizer.decode(prompt) + said)["input_ids"]
        apart = whole[: len(prompt)] != prompt
        counts["apart"] += apart
        found.append((prompt, tokenizer(said)["input_ids"] if apart else whole[len(prompt) :]))
    return found


@pytest.mark.whole
@pytest.mark.parametrize("number", [120, pytest.param(1000, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("name", TEMPLATES)
def test_masks_equal_those_counted_by_hand(tmp_path: Path, name: str, number: int) -> None:
    rng = random.Random(18)
    lines = [wrong(rng) if rng.random() < 0.1 else row(rng) for _ in range(number)]
    path = tmp_path / "talks.jsonl"
    path.write_text("".join((t if isinstance(t, str) else json.dumps(t)) + "\n" for t in lines))
    rows = [line for line in lines if not isinstance(line, str)]
    tokenizer = train_tokenizer(["why a cat. on the mat: Yes. No, it is {} </> <bot> " * 9], 300)
    tokenizer.chat_template = TEMPLATES[name]
    samples = Samples.read(str(path), tokenizer, LENGTH, reading=Reading())
    counts = {"apart": 0, "unopened": 0}
    found_by_hand = [by_hand(each, name, tokenizer, counts) for each in rows]
    bad = sum(not each for each in found_by_hand) + len(lines) - len(rows)
    assert f"{bad} of {number} rows left out" in next(samples.notes())
    assert counts["apart"] > 0 or name != "spaced"
    place = 0
    for answers in found_by_hand:
        covered: set[int] = set()
        ids, counted, place = _sample(samples, place) if answers else ([], [], place)
        for prompt, said in answers:
            if ids[: len(prompt)] != prompt or len(prompt) in covered:
                assert {i for i, each in enumerate(counted) if each} == covered
                ids, counted, place = _sample(samples, place)
                covered = set()
            assert ids[: len(prompt)] == prompt
            assert ids[len(prompt) : len(prompt) + len(said)] == said[: LENGTH - len(prompt)]
            covered |= set(range(len(prompt), min(LENGTH, len(prompt) + len(said))))
        assert {i for i, each in enumerate(counted) if each} == covered
    assert place == len(samples)
    if name == "opens":
        told_note = f"{counts['unopened']} answers with no thought"
        assert any(told_note in note for note in samples.notes())


def _sample(samples: Samples, place: int) -> tuple[list[int], list[bool], int]:
    batch = samples.batch([place])
    return batch.token_ids[0].tolist(), batch.counted[0].tolist(), place + 1
