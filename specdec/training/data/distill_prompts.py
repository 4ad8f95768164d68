"""What the verifier is asked when it answers training data anew."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from specdec.decoding.request import Request
from specdec.prompts import Conversation
from specdec.training.data.samples import first, rendered
from specdec.training.data.text import Document, Written, joined


def prompts_of(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    prompt_tokens: int,
    block_length: int,
    where: str,
) -> Iterator[Request]:
    """Yield a request for each answer, in the order of the data, under a name that is its own.

    Every turn of an assistant is asked for, after the messages before it; texts are joined, and
    the first `prompt_tokens` of each block of `block_length` tokens are to be continued; of written
    tokens it is their prompt.

    Raises:
        UserError: a conversation cannot be rendered; `where` is how the message names the file.
    """
    texts = [document for document in documents if isinstance(document, str)]
    if texts:
        for number, block in enumerate(joined(tokenizer, texts).split(block_length)):
            if len(block) >= prompt_tokens:
                yield Request(f"block {number}", block[:prompt_tokens].tolist())
    for number, document in enumerate(documents, start=1):
        if isinstance(document, Written):
            prompt = document.token_ids[: document.num_prompt_tokens]
            yield Request(f"row {number}", prompt)
        elif not isinstance(document, str):
            yield from _turns(document, tokenizer, f"row {number}", where)


def _turns(
    talk: Conversation, tokenizer: PreTrainedTokenizerBase, row: str, where: str
) -> Iterator[Request]:
    for turn, message in enumerate(talk.messages):
        if message.role == "assistant":
            asked = rendered(first(talk, turn), tokenizer, f"{where}: {row}", True)
            prompt = tokenizer(asked, add_special_tokens=False)["input_ids"]
            yield Request(f"{row} message {turn + 1}", prompt)
