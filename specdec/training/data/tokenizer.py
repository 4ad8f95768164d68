"""A tokenizer for a model that is trained from scratch."""

from collections.abc import Iterable

from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Learn a byte-level BPE; every text round-trips, since all 256 bytes are in it."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        iter(documents), vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )
