"""Rendering: which text, through which template, with which special tokens."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from specdec.core.errors import UserError
from specdec.core.trace import Trace
from specdec.prompts import Message, Prompt, Rendering, answer_of, messages_for_turn, render_turn
from tests.support.templates import tokenizer_of_bytes

TEMPLATE = (
    "<s>{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system\nrole here') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
BOS = 256


def byte_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """One token a byte; begins texts with `<s>` unless told not to, as Llama's does."""
    vocab = {char: byte for byte, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def chat() -> PreTrainedTokenizerFast:
    return byte_tokenizer(TEMPLATE)


@pytest.fixture(scope="module")
def base() -> PreTrainedTokenizerFast:
    return byte_tokenizer(None)


RAW = Prompt("r", "", ((Message("user", "Once"),),), raw=True)
SINGLE = Prompt("s", "", ((Message("user", "Hi"),),))
MULTI = Prompt("m", "", ((Message("user", "a"),), (Message("user", "c"),)))
HISTORY = Prompt(
    "h", "", ((Message("user", "a"), Message("assistant", "b"), Message("user", "c")),)
)
SYSTEM = Prompt("y", "", ((Message("system", "Be brief."), Message("user", "a")),))


def test_a_turn_follows_the_answers_to_those_before() -> None:
    assert messages_for_turn(MULTI, []) == (Message("user", "a"),)
    assert messages_for_turn(MULTI, ["b"]) == HISTORY.turns[0]
    assert messages_for_turn(HISTORY, []) == HISTORY.turns[0]
    with pytest.raises(IndexError, match="2 turns"):
        messages_for_turn(MULTI, ["b", "d"])


@pytest.mark.parametrize(
    ("prompt", "answers", "mode", "text"),
    [
        (RAW, [], "auto", "Once"),
        (RAW, [], "raw", "Once"),
        (RAW, [], "chat", "<s>[user]Once\n[assistant]"),
        (SINGLE, [], "auto", "<s>[user]Hi\n[assistant]"),
        (SINGLE, [], "chat", "<s>[user]Hi\n[assistant]"),
        (SINGLE, [], "raw", "Hi"),
        (MULTI, ["b"], "auto", "<s>[user]a\n[assistant]b\n[user]c\n[assistant]"),
        (MULTI, ["b"], "raw", "a\n\nb\n\nc"),
        (HISTORY, [], "auto", "<s>[user]a\n[assistant]b\n[user]c\n[assistant]"),
        (SYSTEM, [], "raw", "Be brief.\n\na"),
    ],
)
def test_with_a_chat_template(
    chat: PreTrainedTokenizerFast, prompt: Prompt, answers: list[str], mode: str, text: str
) -> None:
    rendered = render_turn(prompt, answers, chat, Rendering(mode))
    assert rendered.text == text
    # The text begins once, whether the template or the tokenizer writes `<s>`.
    assert rendered.token_ids[0] == BOS
    assert rendered.token_ids.count(BOS) == 1
    assert chat.decode(list(rendered.token_ids)) == "<s>" + text.removeprefix("<s>")


@pytest.mark.parametrize("mode", ["auto", "raw"])
@pytest.mark.parametrize(
    ("prompt", "answers", "text"),
    [(RAW, [], "Once"), (SINGLE, [], "Hi"), (MULTI, [], "a"), (MULTI, ["b"], "a\n\nb\n\nc")],
)
def test_a_base_model_reads_plain_text(
    base: PreTrainedTokenizerFast, prompt: Prompt, answers: list[str], text: str, mode: str
) -> None:
    rendered = render_turn(prompt, answers, base, Rendering(mode))
    assert rendered.text == text
    assert rendered.token_ids == tuple(base(text)["input_ids"])


def test_chat_needs_a_template(base: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="='chat': the tokenizer has no chat template; expected"):
        render_turn(RAW, [], base, Rendering("chat"))


def test_an_unknown_mode() -> None:
    with pytest.raises(UserError, match="='none': expected one of auto, chat, raw"):
        Rendering("none")


def test_a_template_that_refuses_is_told_in_one_line(chat: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError) as caught:
        render_turn(SYSTEM, [], chat)
    assert str(caught.value).startswith("prompt 'y': the chat template refuses it (no system)")
    assert "\n" not in str(caught.value)


def test_no_tokens_at_all() -> None:
    silent = byte_tokenizer("{{ '' }}")
    with pytest.raises(UserError, match="prompt 's': no tokens"):
        render_turn(SINGLE, [], silent)


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"tool_calls": [{"function": {"name": "f"}}]}, "tool_calls"),
        ({"reasoning_content": "hm"}, "reasoning_content"),
        ({"content": [{"type": "image"}]}, "content"),
    ],
)
def test_what_plain_text_cannot_say_is_refused(
    base: PreTrainedTokenizerFast, more: dict[str, object], what: str
) -> None:
    row = {"role": "assistant", "content": "x", **more}
    said = Message("assistant", row["content"], row)
    prompt = Prompt("p", "", ((said, Message("user", "y")),), where="rows.jsonl:3")
    with pytest.raises(UserError) as caught:
        render_turn(prompt, [], base)
    expected = f"rows.jsonl:3: prompt 'p': only a chat template can say the {what} of"
    assert str(caught.value).startswith(expected)


def test_plain_text_has_no_tools(base: PreTrainedTokenizerFast) -> None:
    prompt = Prompt("p", "", ((Message("user", "y"),),), given={"tools": []})
    with pytest.raises(UserError, match="only a chat template can say its tools"):
        render_turn(prompt, [], base)
    assert render_turn(replace(prompt, raw=True), [], base).text == "y"


def test_text_that_no_tokenizer_takes(base: PreTrainedTokenizerFast) -> None:
    prompt = Prompt("p", "", ((Message("user", "bad \ud83d half"),),), raw=True)
    with pytest.raises(UserError, match="prompt 'p': cannot be tokenized"):
        render_turn(prompt, [], base)


def trace(output_ids: Sequence[int], finish_reason: str) -> Trace:
    return Trace("p", "", 0, 3, tuple(output_ids), "", finish_reason, 0.0, ())


@pytest.mark.parametrize(
    ("text", "reason", "answer"),
    [
        ("<|channel|>k<|message|>pq<|im_end|>", "eos", "<|channel|>k<|message|>pq"),
        ("<think>a</think>b</s>", "eos", "<think>a</think>b"),
        ("ab<|im_end|>", "stop", "ab"),
        ("ab\n\n", "stop", "ab\n\n"),
        ("ab<|im_end|>", "length", "ab<|im_end|>"),
        ("", "context", ""),
    ],
)
def test_answers_keep_their_marks_but_for_the_end(text: str, reason: str, answer: str) -> None:
    tokenizer = tokenizer_of_bytes(None)
    assert answer_of(trace(tokenizer(text)["input_ids"], reason), tokenizer) == answer
