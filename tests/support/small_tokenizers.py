"""Small tokenizers of every kind, made in memory: what they spell is known."""

from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = (
    "def naive(self, text):\n    return [word for word in text.split() if word != 'the']\n\n"
    "The quick brown Fox jumps over 42 lazy dogs; it's the end of the story.\n"
    "class Story:\n    def __init__(self, end):\n        self.end = end  # caf\u00e9 \U0001f389\n"
)
BYTES = pre_tokenizers.ByteLevel.alphabet()


def wrapped(tokenizer: Tokenizer, **names: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@cache
def byte_level(size: int = 320, end: str = "<|endoftext|>", reverse: bool = False) -> Any:
    """GPT-2's kind; other sizes have other tokens, and `reverse` learns them of other words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[end], initial_alphabet=BYTES, show_progress=False
    )
    text = " ".join(word[::-1] for word in TEXT.split()) if reverse else TEXT
    made.train_from_iterator([text], trainer)
    return wrapped(made, eos_token=end)


@cache
def metaspace(prepend: bool = True) -> Any:
    """SentencePiece's kind: a space before the text, and bytes for what it has no piece of."""
    made = Tokenizer(models.Unigram())
    scheme = "always" if prepend else "never"
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="first" if prepend else scheme),
        ]
    )
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=names[:3], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator([TEXT.replace("caf\u00e9 \U0001f389", "cafe")], trainer)
    pieces = [tuple(each) for each in _pieces(made) if each[0] not in names]
    vocab = [(name, 0.0) for name in names[:3]] + [(name, -20.0) for name in names[3:]] + pieces
    made.model = models.Unigram(vocab, unk_id=0, byte_fallback=True)
    steps: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prepend else []))
    return wrapped(made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _pieces(made: Tokenizer) -> list[list[Any]]:
    import json

    return json.loads(made.to_str())["model"]["vocab"]


@cache
def wordpiece() -> Any:
    """BERT's kind, in lower case: white space and capitals do not come back."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=160, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    made.train_from_iterator([TEXT], trainer)
    return wrapped(made, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def letters(tokens: list[str]) -> Any:
    """Byte-level BPE of a few tokens, numbered as they are listed; longer ones merge two."""
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = [(token[:-1], token[-1]) for token in tokens if len(token) > 1]
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return wrapped(made)


KINDS = {
    "byte level": byte_level,
    "metaspace": metaspace,
    "metaspace without a space before": lambda: metaspace(prepend=False),
    "wordpiece": wordpiece,
}
