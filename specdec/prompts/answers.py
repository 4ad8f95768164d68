"""A model's own answer, as a message of the conversation that goes on.

Marks of reasoning stay in it as they were spelt, since chat templates know their own model's: some
take thoughts out of earlier turns by them (Qwen 3, DeepSeek R1). Harmony's refuses them and wants
what stands between them: https://cookbook.openai.com/articles/openai-harmony.
"""

import re
from typing import TYPE_CHECKING

from specdec.prompts.message import Message

if TYPE_CHECKING:  # transformers takes seconds to import; reading prompts should not wait for it
    from transformers import PreTrainedTokenizerBase

    from specdec.core.trace import Trace

CHANNEL = re.compile(
    r"<\|channel\|>\s*(?P<name>[\w.-]+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
    r"(?P<text>.*?)(?=<\|(?:end|return|call|start|channel)\|>|$)",
    re.DOTALL,
)
FINAL = "final"


def answer_of(trace: "Trace", tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return what was answered, special tokens as they are spelt, without the one that ended it.

    Templates write the end of a turn themselves.
    """
    token_ids = list(trace.output_ids)
    special = token_ids and token_ids[-1] in tokenizer.all_special_ids
    if trace.finish_reason == "eos" or (trace.finish_reason == "stop" and special):
        token_ids.pop()
    return str(tokenizer.decode(token_ids, clean_up_tokenization_spaces=False))


def answered(answer: str, by_channel: bool = False) -> Message:
    """Return an answer as a message; `by_channel`, its final part and, beside it, its thoughts."""
    parts = list(CHANNEL.finditer(answer)) if by_channel else []
    if not parts:
        return Message("assistant", answer)
    final = "".join(part["text"] for part in parts if part["name"] == FINAL)
    thoughts = "".join(part["text"] for part in parts if part["name"] != FINAL)
    row = {"role": "assistant", "content": final}
    return Message("assistant", final, {**row, "thinking": thoughts} if thoughts else row)
