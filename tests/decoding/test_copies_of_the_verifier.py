"""Copies of the embedded verifier whose generation configuration asks for something.

Whatever proposes, the text at temperature 0 is that of `generate()` on the same folder, and the
heads and the draft that were made for the embedded verifier still serve: only its weights count.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import specdec as sd
from specdec.core.protocols import Proposer
from specdec.core.sampling import HEEDED

ZOO = Path(sd.__file__).parent / "zoo"
MAX_NEW_TOKENS = 24
SOURCES = (
    "import os\n",
    "class Reader:\n    def __init__(self, path):\n        self.",
    "def mean(values):\n    total = sum(value for value in values)\n    return",
    "x",
)
Asking = Callable[["Plain"], dict[str, Any]]


@dataclass(frozen=True)
class Plain:
    """The embedded verifier, and what it writes when nothing is asked for."""

    prompts: Sequence[tuple[int, ...]]
    texts: Sequence[tuple[int, ...]]

    @cached_property
    def common(self) -> list[int]:
        """Tokens that the texts hold, the most frequent first."""
        every = [token for text in self.texts for token in text]
        return sorted(dict.fromkeys(every), key=every.count, reverse=True)

    @property
    def end(self) -> int:
        """A token that ends some texts early."""
        return self.texts[1][9]


SETTINGS: dict[str, Asking] = {
    "sequence_bias": lambda plain: {
        "sequence_bias": [[[plain.common[0]], -3.0], [list(plain.texts[0][2:4]), -9.0]]
    },
    "encoder_repetition_penalty": lambda _: {"encoder_repetition_penalty": 2.5},
    "repetition_penalty": lambda _: {"repetition_penalty": 1.3},
    "no_repeat_ngram_size": lambda _: {"no_repeat_ngram_size": 2},
    "encoder_no_repeat_ngram_size": lambda _: {"encoder_no_repeat_ngram_size": 1},
    "bad_words_ids": lambda plain: {
        "bad_words_ids": [[plain.common[1]], list(plain.texts[2][1:3])],
    },
    "min_length": lambda plain: {"min_length": 26, "eos_token_id": [0, plain.end]},
    "min_new_tokens": lambda plain: {"min_new_tokens": 14, "eos_token_id": [plain.end, 0]},
    "forced_bos_token_id": lambda plain: {"forced_bos_token_id": plain.common[3]},
    "forced_eos_token_id": lambda _: {"forced_eos_token_id": 0},
    "remove_invalid_values": lambda _: {"remove_invalid_values": True, "repetition_penalty": 1.1},
    "exponential_decay_length_penalty": lambda _: {"exponential_decay_length_penalty": [6, 1.5]},
    "suppress_tokens": lambda plain: {"suppress_tokens": plain.common[:3]},
    "begin_suppress_tokens": lambda plain: {
        "begin_suppress_tokens": [text[0] for text in plain.texts]
    },
    "eos_token_id": lambda plain: {"eos_token_id": [plain.end, plain.common[5]]},
    "stop_strings": lambda _: {"stop_strings": ["self", "\n\n"]},
    "several": lambda plain: {
        "repetition_penalty": 1.15, "no_repeat_ngram_size": 3, "min_new_tokens": 6,
        "suppress_tokens": plain.common[2:3], "bad_words_ids": [plain.common[4:6]],
        "begin_suppress_tokens": [plain.texts[0][0]], "eos_token_id": [0, plain.end],
        "stop_strings": ["return"],
    },
}  # fmt: skip
assert set(HEEDED) < set(SETTINGS)


def generated(folder: Path, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Let transformers write each text, with nothing but what the folder says."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    texts: list[tuple[int, ...]] = []
    for prompt in prompts:
        batch = torch.tensor([prompt])
        output = model.generate(
            batch, attention_mask=torch.ones_like(batch), max_new_tokens=MAX_NEW_TOKENS,
            pad_token_id=0, tokenizer=tokenizer,
        )  # fmt: skip
        texts.append(tuple(output[0, len(prompt) :].tolist()))
    return texts


@pytest.fixture(scope="module")
def plain() -> Plain:
    tokenizer: Any = AutoTokenizer.from_pretrained(ZOO / "verifier")
    prompts = [tuple(tokenizer(text)["input_ids"]) for text in SOURCES]
    return Plain(prompts, generated(ZOO / "verifier", prompts))


@pytest.fixture(scope="module")
def draft() -> sd.HFCausalLM:
    return sd.load("zoo:draft", vocabulary_of="zoo:verifier")


def proposers(
    verifier: sd.HFCausalLM, draft: sd.HFCausalLM, texts: Sequence[tuple[int, ...]]
) -> dict[str, Proposer]:
    tree = sd.Sparse([[0, 0, 0], [0, 1], [1], [2]])
    own = {str(number): ids for number, ids in enumerate(texts)}
    return {
        "none": sd.NoProposer(),
        "ngram": sd.NGram(gamma=4),
        "recorded": sd.Recorded(own, gamma=4),
        "draft_chain": sd.DraftModel(draft, sd.Chain(gamma=4)),
        "draft_sampled": sd.DraftModel(draft, sd.Sampled([2, 1, 1], "iid")),
        "draft_dynamic": sd.DraftModel(draft, sd.Dynamic(7, 3)),
        "medusa_chain": sd.Medusa.load("zoo:medusa", verifier, sd.Chain(gamma=3)),
        "medusa_tree": sd.Medusa.load("zoo:medusa", verifier, tree),
        "chained_chain": sd.Chained.load("zoo:chained", verifier, sd.Chain(gamma=3)),
        "chained_tree": sd.Chained.load("zoo:chained", verifier, tree),
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_text_is_that_of_generate_whatever_proposes(
    name: str, plain: Plain, draft: sd.HFCausalLM, tmp_path: Path
) -> None:
    folder = tmp_path / "verifier"
    shutil.copytree(ZOO / "verifier", folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | SETTINGS[name](plain)))
    expected = generated(folder, plain.prompts)
    assert expected != plain.texts, "it changes nothing, so it tests nothing"
    verifier = sd.load(str(folder))
    requests = [sd.Request(str(number), prompt) for number, prompt in enumerate(plain.prompts)]
    stopping = sd.Stopping.of(verifier, MAX_NEW_TOKENS)
    for called, proposer in proposers(verifier, draft, expected).items():
        # Rows of unlike lengths, and one that takes the place of another.
        for batch in (1, 3) if name == "several" else (3,):
            decoder = sd.SpeculativeDecoder(
                verifier, proposer, sd.Rejection(), sd.Sampling(0.0), stopping, batch=batch
            )
            found = [trace.output_ids for trace in decoder.decode(requests)]
            assert found == expected, f"{called}, B={batch}"
