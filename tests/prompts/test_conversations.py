"""A thousand conversations through eight templates: what is read is what the row says."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from specdec.core.errors import UserError
from specdec.prompts import Message, Prompt, Rendering, load_prompts, render_turn
from tests.support.templates import TEMPLATES, tokenizer_of_bytes

NUMBER = 1000
SAID = (
    "Why?",
    " two\nlines ",
    "na\u00efve \U0001f642",
    "<|im_end|> spelt",
    "{{ 7 * 6 }}",
    "0",
    "x",
)
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "required": ["city"]}},
}


def content(rng: random.Random, plain: bool) -> Any:
    text = rng.choice(SAID)
    if plain:
        return text
    parts = [{"type": "text", "text": text}, {"type": "text", "text": rng.choice(SAID)}]
    return rng.choices([text, parts, [{"type": "image"}, *parts]], [8, 2, 1])[0]


def called(rng: random.Random, plain: bool, number: int) -> list[dict[str, Any]]:
    """Return a call of a tool, the answer to it, and perhaps what the assistant says to that."""
    call = {"name": "weather", "arguments": {"city": rng.choice(SAID), "days": number}}
    asking: dict[str, Any] = {
        "role": "assistant",
        "content": rng.choice([None, ""]),
        "tool_calls": [{"id": f"call{number}", "type": "function", "function": call}],
    }
    if rng.random() < 0.3:
        del asking["content"]
    answer = {"role": "tool", "tool_call_id": f"call{number}", "name": "weather"}
    return [asking, {**answer, "content": rng.choice(["sunny", "", content(rng, plain)])}]


def answered(rng: random.Random, plain: bool) -> dict[str, Any]:
    message = {"role": "assistant", "content": content(rng, plain)}
    name = rng.choice(["thinking", "reasoning_content", "weight", None])
    if name is not None:
        message = {name: rng.choice(SAID), **message}
    elif rng.random() < 0.5:
        message["content"] = f"<think>\n{rng.choice(SAID)}\n</think>\n\n{rng.choice(SAID)}"
    return message


def conversation(rng: random.Random) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    plain = rng.random() < 0.5  # text alone, which every template takes
    if rng.random() < 0.4:
        messages.append(
            {"role": rng.choice(["system", "developer"]), "content": content(rng, plain)}
        )
    for number in range(rng.randint(1, 4)):
        messages.append({"role": "user", "content": content(rng, plain)})
        if rng.random() < 0.3:
            messages += called(rng, plain, number)
        if rng.random() < 0.7:
            messages.append(answered(rng, plain))
    if rng.random() < 0.2:
        messages.append({"role": "user", "name": "Ada", "content": rng.choice(SAID)})
    return messages


def row(rng: random.Random, number: int) -> dict[str, Any]:
    found: dict[str, Any] = {"id": number, "messages": conversation(rng)}
    if rng.random() < 0.4:
        found["tools"] = [WEATHER]
    if rng.random() < 0.2:
        found["documents"] = [{"title": "Rain", "text": rng.choice(SAID)}]
    return found


def to_answer(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop what the assistant said last: it is to be said anew."""
    kept = list(messages)
    while kept[-1]["role"] == "assistant":
        kept.pop()
    return kept


def by_template(
    tokenizer: PreTrainedTokenizerFast, row: dict[str, Any], more: dict[str, Any]
) -> tuple[list[int] | None, str]:
    """Return what transformers makes of a row, or else why the template does not take it."""
    messages = to_answer(row["messages"])
    try:
        read: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **more)
    except Exception as error:
        return None, str(error).splitlines()[0]
    return read["input_ids"], ""


@pytest.mark.whole
def test_prompts_are_what_the_template_makes_of_the_row(tmp_path: Path) -> None:
    rng = random.Random(17)
    rows = [row(rng, number) for number in range(NUMBER)]
    path = tmp_path / "conversations.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    prompts = load_prompts(path)
    options: list[dict[str, Any]] = [{}, {"enable_thinking": False}]
    num_equal = dict.fromkeys(TEMPLATES, 0)
    for name, template in TEMPLATES.items():
        tokenizer = tokenizer_of_bytes(template)
        for number, (prompt, conversation) in enumerate(zip(prompts, rows, strict=True)):
            given = {
                key: conversation[key] for key in ("tools", "documents") if key in conversation
            }
            how = Rendering(options=options[number % 2])
            expected, reason = by_template(tokenizer, conversation, options[number % 2] | given)
            if expected is None:
                with pytest.raises(UserError) as refused:
                    render_turn(prompt, [], tokenizer, how)
                assert f"{path}:{number + 1}: prompt '{number}': the chat" in str(refused.value)
                assert reason in str(refused.value)
                continue
            found = render_turn(prompt, [], tokenizer, how)
            assert list(found.token_ids) == expected, f"{name}: {conversation}"
            num_equal[name] += 1
    assert min(num_equal.values()) > NUMBER / 8, num_equal
    assert num_equal["thinking"] == NUMBER


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_turns_after_answers_are_told_like_a_written_conversation(name: str) -> None:
    """Also where answers hold the model's own marks: kept, taken out, or their final part."""
    tokenizer = tokenizer_of_bytes(TEMPLATES[name])
    turns = tuple((Message("user", text),) for text in ("hi", "more"))
    final = (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes"
    )
    for answer in ("yes", "<think>\nhm\n</think>\n\nyes", final):
        answered = {"role": "assistant", "content": answer}
        if name == "channels" and answer == final:
            answered = {"role": "assistant", "content": "yes", "thinking": "hm"}
        rows = [{"role": "user", "content": "hi"}, answered, {"role": "user", "content": "more"}]
        expected: Any = tokenizer.apply_chat_template(rows, add_generation_prompt=True)
        rendered = render_turn(Prompt("t", "", turns), [answer], tokenizer)
        assert list(rendered.token_ids) == expected["input_ids"]
