"""What counts in a conversation: the assistant's words as the template puts them, no others."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from specdec.core.errors import UserError
from specdec.prompts import Conversation, Message
from specdec.training.data.samples import Samples, render
from specdec.training.lm import train_tokenizer

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FORGETFUL = "{{ messages[-1].content }}{% if add_generation_prompt %}>{% endif %}"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is <assistant> a word?"},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because of its brackets."},
]
SHORT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]


def tokenizer(template: str | None = CHATML) -> Any:
    trained = train_tokenizer(["Is it a word? No. Because of its brackets. " * 4], 280)
    trained.chat_template = template
    return trained


def file(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "talk.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_only_the_assistant_counts() -> None:
    """With the closing mark, which the assistant must learn to say, and in its right places."""
    tok = tokenizer()
    talk = Conversation(tuple(Message(turn["role"], turn["content"]) for turn in TALK))
    token_ids, counted = render(talk, tok, "here")
    assert tok.decode(token_ids) == tok.apply_chat_template(TALK, tokenize=False)
    said = [token for token, counts in zip(token_ids, counted, strict=True) if counts]
    assert tok.decode(said) == "No.</>\nBecause of its brackets.</>\n"


def test_batches_are_padded_and_padding_does_not_count(tmp_path: Path) -> None:
    samples = Samples(file(tmp_path, {"messages": TALK}, {"messages": SHORT}), tokenizer(), 500)
    batch = samples.take(0, 2)
    lengths = sorted(len(ids) for ids, _ in samples.rows)
    assert batch.token_ids.shape == (2, lengths[1])
    assert int(batch.counted.sum()) == sum(int(counted.sum()) for _, counted in samples.rows)
    short = batch.counted[batch.counted.sum(1).argmin()]
    assert not short[lengths[0] :].any()


def test_every_epoch_has_every_sample_once_in_another_order(tmp_path: Path) -> None:
    rows = [{"messages": [*SHORT[:1], {"role": "assistant", "content": c}]} for c in "abcdefgh"]
    samples = Samples(file(tmp_path, *rows), tokenizer(), 500, seed=3)

    def epoch(number: int) -> list[tuple[int, ...]]:
        return [tuple(row.tolist()) for row in samples.take(8 * number, 8).token_ids]

    assert sorted(epoch(0)) == sorted(epoch(1))
    assert epoch(0) != epoch(1)
    assert torch.equal(samples.take(3, 2).token_ids, samples.take(0, 8).token_ids[3:5])


def test_the_preview_shows_the_mask(tmp_path: Path) -> None:
    shown = Samples(file(tmp_path, {"messages": SHORT}), tokenizer(), 500).preview()
    assert shown == "[[<user>Hi</>\n<assistant>]]Yes.</>\n"


@pytest.mark.parametrize(
    ("template", "rows", "said"),
    [
        (None, [{"messages": SHORT}], "no chat template"),
        (FORGETFUL, [{"messages": TALK}], "rewrites earlier turns"),
        (CHATML, [{"messages": SHORT}, {"messages": SHORT[:1]}], "row 2: no assistant"),
        (CHATML, [{"messages": SHORT}, {"text": "plain"}], "plain text, conversations"),
        ("{{ raise_exception('no') }}", [{"messages": SHORT}], "refuses it (no)"),
    ],
)
def test_what_cannot_be_masked_is_refused(
    tmp_path: Path, template: str | None, rows: list[dict[str, Any]], said: str
) -> None:
    """Never all ones in silence."""
    path = file(tmp_path, *rows)
    with pytest.raises(UserError) as caught:
        Samples(path, tokenizer(template), 500)
    assert said in str(caught.value)
    assert path in str(caught.value)


def test_an_answer_beyond_the_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no assistant's turn within 4 tokens"):
        Samples(file(tmp_path, {"messages": TALK}), tokenizer(), 4)


def test_calls_tools_and_thoughts_reach_the_template(tmp_path: Path) -> None:
    """As in `prompts`: a row is what the template makes of it."""
    template = (
        "{{ tools | tojson if tools }}{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}"
        "{{ m.tool_calls | tojson if m.tool_calls }}{{ m.reasoning_content }}</>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tok = tokenizer(template)
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "No."},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "Is it?"},
    ]
    tools = [{"type": "function", "function": {"name": "f"}}]
    row = {"messages": messages, "tools": tools, "system": "Be brief."}
    ((token_ids, _),) = Samples(file(tmp_path, row), tok, 500).rows
    told: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}, *messages]
    expected = tok.apply_chat_template(told, tools=tools, tokenize=False)
    assert tok.decode(token_ids.tolist()) == expected
