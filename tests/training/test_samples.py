"""What counts in a conversation: the assistant's words as the template puts them, no others."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from specdec.core.errors import UserError
from specdec.training.data.reading import Reading
from specdec.training.data.samples import Samples
from specdec.training.data.tokenizer import train_tokenizer

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


def file(folder: Path, *rows: Any) -> str:
    path = folder / "talk.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def said(samples: Samples) -> list[tuple[str, str]]:
    """Return what does not count and what does, of each sample: as text, for hands to count."""
    found: list[tuple[str, str]] = []
    for place in range(len(samples)):
        row = samples.batch([place])
        ids, counted = row.token_ids[0], row.counted[0]
        parts = [str(samples.tokenizer.decode(ids[mask].tolist())) for mask in (~counted, counted)]
        found.append((parts[0], parts[1]))
    return found


def test_only_the_assistant_counts(tmp_path: Path) -> None:
    """With the closing mark, which the assistant must learn to say, and in its right places."""
    tok = tokenizer()
    samples = Samples.read(file(tmp_path, {"messages": TALK}), tok, 500)
    row = samples.batch([0])
    assert tok.decode(row.token_ids[0]) == tok.apply_chat_template(TALK, tokenize=False)
    ((_, answers),) = said(samples)
    assert answers == "No.</>\nBecause of its brackets.</>\n"


def test_batches_are_padded_and_padding_does_not_count(tmp_path: Path) -> None:
    samples = Samples.read(
        file(tmp_path, {"messages": TALK}, {"messages": SHORT}), tokenizer(), 500
    )
    batch = samples.take(0, 2)
    lengths = sorted(samples.lengths.tolist())
    assert batch.token_ids.shape == (2, lengths[1])
    assert int(batch.counted.sum()) == samples.num_counted
    short = batch.counted[batch.counted.sum(1).argmin()]
    assert not short[lengths[0] :].any()


def test_every_epoch_has_every_sample_once_in_another_order(tmp_path: Path) -> None:
    rows = [{"messages": [*SHORT[:1], {"role": "assistant", "content": c}]} for c in "abcdefgh"]
    samples = Samples.read(file(tmp_path, *rows), tokenizer(), 500, seed=3)

    def epoch(number: int) -> list[tuple[int, ...]]:
        return [tuple(row.tolist()) for row in samples.take(8 * number, 8).token_ids]

    assert sorted(epoch(0)) == sorted(epoch(1))
    assert epoch(0) != epoch(1)
    assert torch.equal(samples.take(3, 2).token_ids, samples.take(0, 8).token_ids[3:5])


def test_the_preview_shows_the_mask(tmp_path: Path) -> None:
    shown = Samples.read(file(tmp_path, {"messages": SHORT}), tokenizer(), 500).preview()
    assert shown == "[[<user>Hi</>\n<assistant>]]Yes.</>\n"


BAD: list[tuple[Any, str]] = [
    ({"messages": SHORT[:1]}, "no answer to train on"),
    ({"messages": SHORT[1:]}, "an answer before anything is asked"),
    ({"messages": [SHORT[0], {"role": "assistant", "content": " "}]}, "an empty answer"),
    ({"conversations": [{"from": "bing", "value": "x"}]}, "unknown role 'bing'"),
    ({"messages": [{"role": "user", "content": "long " * 200}, SHORT[1]]}, "begins behind 200"),
    ({"messages": [{"role": "user", "content": "refuse"}, SHORT[1]]}, "refuses it (no way)"),
    ({"messages": [{"role": "user", "content": 3}, SHORT[1]]}, "must be text, parts or null"),
    ({"messages": [{"role": 7, "content": "x"}]}, "`role` and `content`"),
    ({"messages": "x"}, "expected a field"),
    ({"text": "plain"}, "plain text among conversations"),
    ({"text": "half \ud83d"}, "half a character"),
    ({"messages": SHORT, "tools": "x"}, "`tools` that are no list"),
    ({"messages": SHORT, "chat_template_kwargs": {"tokenize": 1}}, "is not the template's"),
    ([], "expected a JSON object"),
]
PICKY = (
    "{% if messages[0].content == 'refuse' %}{{ raise_exception('no way') }}{% endif %}" + CHATML
)


def test_bad_rows_are_left_out_and_counted_by_reason(tmp_path: Path) -> None:
    """Each kind alone among good rows, then all of them; `strict` refuses any."""
    good, tok = [{"messages": SHORT}] * 20, tokenizer(PICKY)
    for row, reason in BAD:
        path = file(tmp_path, *good[:4], row, *good[4:])
        samples = Samples.read(path, tok, 200)
        assert len(samples) == 20
        (note,) = samples.notes()
        assert note.startswith("data.path: 1 of 21 rows left out: ")
        assert reason in note
        assert f"{path}:5)" in note
        assert samples.preview().startswith("[[")
        with pytest.raises(UserError, match=r"talk\.jsonl:5: .*; data\.strict=false") as refused:
            Samples.read(path, tok, 200, reading=Reading(strict=True))
        assert "\n" not in str(refused.value)
    bad = [row for row, _ in BAD]
    (note,) = Samples.read(file(tmp_path, *good, *bad), tok, 200).notes()
    assert f"{len(BAD)} of {20 + len(BAD)} rows left out: 1: " in note
    with pytest.raises(UserError, match=rf"{len(BAD)} of {len(BAD) + 5} rows cannot be trained on"):
        Samples.read(file(tmp_path, *good[:5], *bad), tok, 200)


def test_a_conversation_may_lose_some_of_its_answers(tmp_path: Path) -> None:
    greeting = [{"role": "assistant", "content": "Hello."}]
    samples = Samples.read(file(tmp_path, {"messages": [*greeting, *SHORT]}), tokenizer(), 500)
    assert said(samples) == [("<assistant>Hello.</>\n<user>Hi</>\n<assistant>", "Yes.</>\n")]
    (note,) = samples.notes()
    assert "1 answer left out: an answer before anything is asked (" in note
    long = {"role": "user", "content": "long " * 200}
    samples = Samples.read(file(tmp_path, {"messages": [*SHORT, long, SHORT[1]]}), tokenizer(), 60)
    assert said(samples) == [("<user>Hi</>\n<assistant>", "Yes.</>\n")]
    assert "1 answer left out: the answer begins behind 60 tokens" in next(samples.notes())


@pytest.mark.parametrize(
    ("template", "row", "reason"),
    [
        (None, {"messages": SHORT}, "no chat template"),
        (FORGETFUL, {"messages": TALK}, "writes a question otherwise once it is answered"),
        (CHATML, {"messages": SHORT[:1]}, "talk.jsonl:1: no answer to train on"),
        ("{{ raise_exception('no') }}", {"messages": SHORT}, "refuses it (no)"),
        (CHATML, {"text": ""}, "talk.jsonl:1: an empty text"),
    ],
)
def test_what_cannot_be_masked_is_refused(
    tmp_path: Path, template: str | None, row: dict[str, Any], reason: str
) -> None:
    """Never all ones in silence."""
    path = file(tmp_path, row)
    with pytest.raises(UserError) as caught:
        Samples.read(path, tokenizer(template), 500)
    assert reason in str(caught.value)
    assert path in str(caught.value)


def test_no_text_at_all_is_refused(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_text("")
        with pytest.raises(UserError, match="holds no text"):
            Samples.read(str(tmp_path / name), tokenizer(), 500)


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
    samples = Samples.read(file(tmp_path, row), tok, 500)
    messages_before: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}, *messages]
    expected = tok.apply_chat_template(messages_before, tools=tools, tokenize=False)
    assert tok.decode(samples.batch([0]).token_ids[0].tolist()) == expected
    assert not list(samples.notes())


def test_what_a_template_does_not_write_is_noted(tmp_path: Path) -> None:
    """Calls alone would be trained on as the word None."""
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    messages = [
        SHORT[0],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "found"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "Is it?"},
    ]
    rows = [{"messages": messages, "tools": [call]}, {"messages": SHORT, "tools": [call]}]
    samples = Samples.read(file(tmp_path, *rows), tokenizer(), 500)
    assert [answer for _, answer in said(samples)] == ["Yes.</>\n", "Yes.</>\n"]
    alone, thought, tools = samples.notes()
    writing = CHATML.replace("</>", "{{ m.tool_calls[0].function.name if m.tool_calls }}</>")
    thinks = {**messages[1], "reasoning_content": "Is it?"}
    row = {"messages": [SHORT[0], thinks]}
    written = Samples.read(file(tmp_path, row), tokenizer(writing.replace("m.content", "''")), 500)
    assert [answer for _, answer in said(written)] == ["look</>\n"]
    assert "1 answer left out: an answer of `tool_calls` alone, which the chat template" in alone
    assert "1 answer with `reasoning_content` that the chat template does not write" in thought
    assert "1 answer with `tools` that the chat template does not write" in tools


def test_parts_are_told_as_text_where_a_template_does_not_know_them(tmp_path: Path) -> None:
    """Else the list would be trained on as Python spells it."""
    parts = [{"type": "text", "text": "Why"}, {"type": "text", "text": "?"}]
    rows = [{"messages": [{"role": "user", "content": parts}, SHORT[1]]}] * 2
    image = [{"type": "image"}, *parts]
    bad = {"messages": [{"role": "user", "content": image}, SHORT[1]]}
    samples = Samples.read(file(tmp_path, *rows, bad), tokenizer(), 500)
    assert said(samples)[0] == ("<user>Why?</>\n<assistant>", "Yes.</>\n")
    assert "rows left out: parts that are no text, and a chat template" in next(samples.notes())
