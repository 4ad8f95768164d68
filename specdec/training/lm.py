"""Train a decoder-only language model from scratch: how the zoo's models come about."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from specdec.core.errors import UserError, require, require_int
from specdec.core.values import CandidateSource
from specdec.lm.check_prefix import require_two_ways
from specdec.lm.checkpoint import Checkpoint, on_card
from specdec.lm.expert_counts import ExpertCounts
from specdec.lm.mask import PREFIX_LM
from specdec.results.progress import Progress
from specdec.training.balance import Balance
from specdec.training.data.lm_samples import Answers, Blocks, LMSamples, SplitBlocks, has_talks
from specdec.training.data.reading import Reading, Source
from specdec.training.data.samples import Samples
from specdec.training.data.text import Passage, as_text, documents, require_there
from specdec.training.data.tokenised import Tokenised, tokenised
from specdec.training.data.tokenizer import train_tokenizer
from specdec.training.lm_losses import text_loss
from specdec.training.model_folder import save_rounded
from specdec.training.objective import Batch, decay_groups
from specdec.training.shape import LlamaShape, experts_of

DEFAULT_CONTEXT = 2048
INIT, TOKENIZER = "init_path", "tokenizer_path"
BALANCE_WEIGHT = "router_aux_loss_coef"


class LanguageModeling:
    """A Llama-shaped model, its tokenizer and the next-token cross-entropy on plain text.

    With `num_experts` it is Mixtral-shaped: a mixture of as many experts in each layer, of
    `intermediate_size` each, of which a token takes `experts_per_token`. Then the loss of a
    training also keeps the experts in balance, with the weight `router_aux_loss_coef` (null: 0.01);
    a mixture that is continued keeps the weight that its configuration has.

    `init_path` continues from a saved folder (model, tokenizer, and its context length unless
    `max_position_embeddings` gives another) instead of starting afresh, in that model's shape;
    `tokenizer_path` shares a tokenizer with another model, which a draft model must. `revision` and
    `trust_remote_code` are of either, as of `specdec.lm.load`. `reading` is how the texts are read;
    messages are text, too.

    With `attention=prefix_lm` the beginning of each sample is a prompt that sees itself in both
    directions, and the loss is that of the tokens behind it. Blocks of text are split at random
    places; of messages, if the tokenizer has a chat template, each answer stands behind its prompt.

    Raises:
        UserError: an option is out of its range, or there are options of two models to begin with.
    """

    source = CandidateSource.NOTHING
    tokenizer: PreTrainedTokenizerBase  # both there once prepared
    module: nn.Module

    def __init__(
        self,
        data_path: str,
        held_out_path: str | None = None,
        block_length: int = 512,
        hidden_size: int = 192,
        intermediate_size: int = 544,
        num_hidden_layers: int = 8,
        num_attention_heads: int = 3,
        max_position_embeddings: int | None = None,
        vocab_size: int = 2048,
        tokenizer_path: str | None = None,
        init_path: str | None = None,
        eval_tokens: int = 50_000,
        seed: int = 0,
        revision: str | None = None,
        trust_remote_code: bool = False,
        reading: Reading | None = None,
        num_experts: int | None = None,
        experts_per_token: int | None = None,
        router_aux_loss_coef: float | None = None,
        attention: str | None = None,
    ):
        for name, value, minimum in (
            ("block_length", block_length, 2),
            ("max_position_embeddings", max_position_embeddings or DEFAULT_CONTEXT, 2),
            ("vocab_size", vocab_size, 257),
            ("eval_tokens", eval_tokens, 2),
            ("seed", seed, 0),
        ):
            require_int(name, value, minimum)
        known = attention in (None, PREFIX_LM)
        require(known, "attention", attention, f"{PREFIX_LM}, or null: causal")
        self._attention = attention
        self._shape = LlamaShape(
            hidden_size, intermediate_size, num_hidden_layers, num_attention_heads
        )
        fresh_balance = router_aux_loss_coef if init_path is None else None
        self._experts = experts_of(num_experts, experts_per_token, fresh_balance)
        self._balance_weight = router_aux_loss_coef
        fresh = self._experts is None or init_path is None
        require(fresh, "num_experts", num_experts, f"null: the model at {INIT} keeps its own")
        self._paths = data_path, held_out_path
        self._reading = reading or Reading()
        self._start = _checkpoint(init_path, tokenizer_path, revision, trust_remote_code)
        self._is_continued = init_path is not None
        self._block_length, self._eval_tokens = block_length, eval_tokens
        self._context, self._vocab_size, self._seed = max_position_embeddings, vocab_size, seed
        if not self._is_continued:
            self._require_room(max_position_embeddings or DEFAULT_CONTEXT)

    def _require_room(self, context: int) -> None:
        fits, expected = self._block_length <= context, f"at most max_position_embeddings={context}"
        require(fits, "block_length", self._block_length, expected)

    def prepare(self) -> None:
        """Load or train the tokenizer, read the texts, and load or make the model; once.

        Raises:
            UserError: the texts or the model at `init_path` cannot be used.
        """
        if hasattr(self, "module"):
            return
        learnt, held_out = self._reading.sources(*self._paths)
        require_there(held_out)
        start = self._start
        if start is not None and self._is_continued and start.config.is_encoder_decoder:
            raise UserError(f"{start.called}: an encoder-decoder model; expected a decoder alone")
        self.tokenizer = (
            train_tokenizer(_texts(learnt), self._vocab_size) if start is None else start.tokenizer
        )
        self._samples = self._read(learnt, held_out)
        model = self._model()
        self._balance = balance = Balance.of(model.config)
        if balance is not None:
            # Which transformers computes by masks of two dimensions alone.
            expected = f"0 with attention={PREFIX_LM}"
            require(self._attention is None, "router_aux_loss_coef", balance.weight, expected)
        self.module = model

    def _read(self, learnt: Source, held_out: Source) -> LMSamples:
        """Read the texts, and note what is wrong with them."""
        size, length = len(self.tokenizer), self._block_length
        if self._attention == PREFIX_LM and self.tokenizer.chat_template and has_talks(learnt):
            own = (self.tokenizer, length, 0, size, self._reading)
            answers = Answers(
                Samples.read(learnt, self.tokenizer, length, self._seed, size, self._reading),
                Samples.read(held_out, *own),
                self._eval_tokens,
            )
            self._notes = answers.notes()
            return answers
        read, measured = (
            tokenised(each, self._reading, self.tokenizer, length, size, plain=True)
            for each in (learnt, held_out)
        )
        self._notes = [*_left_out(learnt, read), *_left_out(held_out, measured)]
        if read.store.digest == measured.store.digest:
            same = "the very text that is trained on: the loss looks better than it is"
            self._notes.append(f"{held_out.name}: {same}")
        kind = Blocks if self._attention is None else SplitBlocks
        return kind(read.store, measured.store, length, self._eval_tokens, self._seed)

    def _model(self) -> PreTrainedModel:
        if self._start is not None and self._is_continued:
            model = _continued(self._start, self._context, self._balance_weight)
            if self._attention == PREFIX_LM:
                require_two_ways(model.config, f"{INIT}={self._start.path!r}")
            self._require_room(model.config.max_position_embeddings)
            return model
        context, size = self._context or DEFAULT_CONTEXT, len(self.tokenizer)
        end = _end_id(self.tokenizer)
        return self._shape.fresh(size, context, end, self._seed, self._experts)

    @property
    def num_samples(self) -> int:
        """How many blocks a pass has, or answered prompts."""
        return self._samples.num_samples

    @property
    def num_tokens(self) -> int:
        """How many tokens of a pass are read as targets."""
        return self._samples.num_tokens

    def notes(self) -> Sequence[str]:
        """Say what of the data is left out and the like."""
        return self._notes

    def preview(self) -> str:
        """Return the beginning of the first sample."""
        return self._samples.preview(self.tokenizer)

    def batch(self, first: int, count: int) -> Batch:
        """Return the samples numbered first ... first + count - 1."""
        return self._samples.batch(first, count)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Sum of the cross-entropy of what counts, in nats; of experts their balance, too."""
        return text_loss(module, batch, self._attention, self._balance)

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Train the whole model alike."""
        return decay_groups(self.module, learning_rate, weight_decay)

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Return the held-out loss in nats per token and in bits per byte."""
        device = next(module.parameters()).device
        total, num_tokens = 0.0, 0
        scored: list[int] = []
        for batch in self._samples.held_out():
            total += float(text_loss(module, batch.to(device), self._attention))
            counted = batch.counted[:, 1:]
            num_tokens += int(counted.sum())
            scored += batch.token_ids[:, 1:][counted].tolist()
        num_bytes = len(str(self.tokenizer.decode(scored, skip_special_tokens=True)).encode())
        return {
            "eval_loss": total / num_tokens,
            "eval_bits_per_byte": total / math.log(2) / num_bytes,
        }

    def score(self, evaluation: dict[str, float]) -> float:
        """The lower the held-out loss, the better."""
        return -evaluation["eval_loss"]

    def save(self, module: nn.Module, folder: Path, card: Mapping[str, str]) -> None:
        """Write a Hugging Face folder: bf16 safetensors, config and tokenizer."""
        assert isinstance(module, PreTrainedModel)
        lines = {} if self._start is None else _origin(self._start)
        lines |= {} if self._attention is None else {"attention": self._attention}
        save_rounded(module, self.tokenizer, folder, "A language model", {**lines, **card})


def _checkpoint(
    init_path: str | None, tokenizer_path: str | None, revision: str | None, trusts: bool
) -> Checkpoint | None:
    """Name what a model is continued from, or else whose tokenizer it gets."""
    both = init_path is not None and tokenizer_path is not None
    require(not both, TOKENIZER, tokenizer_path, "null: the model at init_path keeps its own")
    path, field = (init_path, INIT) if tokenizer_path is None else (tokenizer_path, TOKENIZER)
    if path is not None:
        return Checkpoint(path, revision, trusts, field)
    named = f"{INIT}=MODEL or {TOKENIZER}=MODEL, too"
    require(revision is None, "revision", revision, named)
    return None


def _origin(start: Checkpoint) -> dict[str, str]:
    what = "started from" if start.field == INIT else "tokenizer of"
    return {what: on_card(start.path, start.commit)}


def _continued(start: Checkpoint, context: int | None, balance: float | None) -> PreTrainedModel:
    given = {"max_position_embeddings": context, BALANCE_WEIGHT: balance}
    changes = {name: value for name, value in given.items() if value is not None}
    if balance is not None and ExpertCounts.of(start.config) is None:
        require(False, BALANCE_WEIGHT, balance, f"null: {start.config.model_type} has no experts")
    with start.complaining():
        return AutoModelForCausalLM.from_pretrained(
            start.source, dtype=torch.float32, **start.how, **changes
        )


def _left_out(source: Source, read: Tokenised) -> Iterator[str]:
    for line in read.left_out.lines():
        yield f"{source.name}: {line}"


def _texts(source: Source) -> Iterator[str]:
    with Progress(None, "train a tokenizer", "row") as bar:
        for found in map(as_text, documents(source)):
            bar.update()
            if isinstance(found.document, Passage):
                yield found.document.text


def _end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    end = tokenizer.eos_token_id
    require(isinstance(end, int), TOKENIZER, tokenizer.name_or_path, "one with an EOS token")
    assert isinstance(end, int)
    return end
