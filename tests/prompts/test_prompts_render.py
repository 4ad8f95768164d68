"""Rendering: which text, through which template, with which special tokens."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from specdec.core.errors import UserError
from specdec.prompts import Message, Prompt, Rendering, messages_for_turn, render_turn

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
