"""Any stock Hugging Face decoder behind the `CausalLM` protocol: no forked modelling code."""

import copy
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, Self, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdec.core.draft_chain import DraftChain, DraftedChain
from specdec.core.errors import UserError
from specdec.core.on_device import on_device
from specdec.core.protocols import Forward
from specdec.core.values import Layer
from specdec.lm import mask
from specdec.lm.batch import pad
from specdec.lm.cache import RowCache, cache_word
from specdec.lm.chain_cells import ChainCells
from specdec.lm.context import steady_length
from specdec.lm.layer_kinds import why_no_trees
from specdec.lm.listening import heard
from specdec.lm.new_cells import NewCells, Span
from specdec.lm.placement import device_of, entry_of, is_whole, moved
from specdec.lm.programs import Programs
from specdec.lm.translation import Translation
from specdec.lm.unembedding import logits_of
from specdec.runtime.choice import AUTO, EAGER, next_best, steps_of, suited
from specdec.runtime.proven import RefusedError

P = ParamSpec("P")
R = TypeVar("R")
PREFILL_CHUNK = 512  # tokens of a prompt per forward: bounds the mask, whatever the prompt


def without_gradients(method: Callable[P, R]) -> Callable[P, R]:
    """Enter inference mode unless the caller has: entering costs as much as some small tensors."""

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.is_inference_mode_enabled():
            return method(*args, **kwargs)
        with torch.inference_mode():
            return method(*args, **kwargs)

    return run


class HFCausalLM:
    """A transformers model and a cache of rows; the weights may be shared, the cache is its own.

    Counts `num_calls` and `num_cells` (cells computed, padding included) since it was opened.

    Args:
        model: a decoder of transformers, on its device and in its type.
        tokenizer: its own; None: requests are of token ids.
        tree_error: the largest difference of logits when trees were proven; None: they were not.
        states_differ: why hidden states cannot be read; None: they can.
        max_length: tokens of context; None: what the configuration says.
        runtime: how steps are run: eager, compiled, cuda_graphs, or auto: as suits what `expect` is
            told.
    """

    prompt_mask: str | None = None  # how prompts are read, if otherwise than other text
    may_forget = True  # whether a cache can let some of its cells go
    reads_whole: str | None = None  # why no part of its layers can read alone; None: it can

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        tree_error: float | None = None,
        states_differ: str | None = None,
        max_length: int | None = None,
        runtime: str = EAGER,
    ):
        self.model = model
        self.tokenizer = tokenizer
        # How far a tree forward was from plain forwards when the loader compared them.
        self.tree_error = tree_error
        # Why `unembed` is not to be trusted, if the loader found that it is not.
        self._states_differ = states_differ
        config = model.config.get_text_config()
        # Why it reads chains of candidates alone, if it does.
        self.no_trees = why_no_trees(model.config)
        self._mask_kind = mask.MaskKind.of(config)
        self._num_layers: int = config.num_hidden_layers
        # By the weights: a configuration may say something else.
        self.vocab_size, self.state_size = head_shape(model)
        self.max_length: int = max_length or steady_length(config)
        self.device: torch.device = device_of(model)
        self._entry = entry_of(model)
        self.commit: str | None = None  # of the Hub, if the loader read it from there
        self.quantization: str | None = None  # of its weights, if the loader rounded them
        self.max_cells: int | None = None  # of a request, if the loader limited them
        self.translation: Translation | None = None  # between tokens, if the loader made one
        self._plain = mask.PlainText(self._mask_kind, model.dtype, self.device)
        self._cache_word = cache_word(model.forward)
        self._prefill_chunk = PREFILL_CHUNK
        self._may_choose, self._chose = runtime == AUTO, False
        self._run_by(EAGER if runtime == AUTO else runtime)
        self._no_logits = torch.zeros(0, device=self.device)
        self.num_calls = 0
        self.num_cells = 0
        self.open(num_rows=1, capacity=64)

    def _run_by(self, runtime: str) -> None:
        self.runtime = runtime
        steps = steps_of(runtime, self.model, self._cache_word)
        self._programs = steps and Programs(steps, self._mask_kind, self.model, self.max_length)

    def with_own_weights(self) -> Self:
        """Return the same model with a copy of its weights, which may then change, and a cache.

        It is run eagerly: programs keep what they have made of weights.
        """
        found = copy.copy(self)
        found.model = copy.deepcopy(self.model)
        found._may_choose = found._chose = False
        found._run_by(EAGER)
        del found._cache
        found.open(num_rows=1, capacity=64)
        return found

    @property
    def has_programs(self) -> bool:
        """Whether its steps are compiled or captured, by its own choice or not."""
        return self._programs is not None

    def expect(self, num_tokens: int) -> None:
        """Choose how steps are run, if that was left open, for so many tokens to come."""
        if self._may_choose and is_whole(self.model):
            self._may_choose, self._chose = False, True
            runtime, why = suited(self.model, num_tokens)
            self._run_by(runtime)
            print(f"runtime=auto: {self.model.config.model_type} {runtime}: {why}")

    def open(self, num_rows: int, capacity: int) -> None:
        """Start afresh with empty rows; buffers that are large enough are used again."""
        self.num_calls = self.num_cells = 0
        cache = getattr(self, "_cache", None)
        if cache is not None and len(cache.lengths) == num_rows and cache.capacity >= capacity:
            cache.restart()
            return
        self._cache = self._new_cache(num_rows, capacity)

    def _new_cache(self, num_rows: int, capacity: int) -> RowCache:
        return RowCache(self._num_layers, num_rows, capacity)

    @property
    def dtype(self) -> str:
        """What its weights are: float32, bfloat16 or float16."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def precision(self) -> str:
        """Its type, and what its weights are rounded to: float32, or float32 of int8 weights."""
        rounded = self.quantization
        return self.dtype if rounded is None else f"{self.dtype} of {rounded} weights"

    @property
    def tree_refusal(self) -> str:
        """What a user is told who wants trees of a model that reads none."""
        kind = self.model.config.model_type
        return f"{kind} cannot read trees, since {self.no_trees}; expected tree=chain"

    @property
    def window(self) -> int | None:
        """How far back sliding layers see; None: there are none."""
        return self._mask_kind.window

    @property
    def cell_bytes(self) -> list[int]:
        """The bytes of one cell's key and value, layer by layer, once the model has read."""
        return self._cache.cell_bytes

    @property
    def key_heads(self) -> list[int]:
        """How many keys a cell has, layer by layer, once the model has read."""
        return self._cache.key_heads

    @property
    def attention(self) -> str:
        """Which attention implementation of transformers it runs, and how prompts are read."""
        implementation = str(self.model.config._attn_implementation)
        return f"{self.prompt_mask} by {implementation}" if self.prompt_mask else implementation

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a text, as the model's generation configuration has them.

        Raises:
            UserError: it names something else.
        """
        settings = self.model.generation_config
        found = None if settings is None else settings.eos_token_id
        if found is None and self.tokenizer is not None:
            found = self.tokenizer.eos_token_id
        if found is None:
            return frozenset()
        listed = list(found) if isinstance(found, list | tuple) else [found]
        ends = [token for token in listed if type(token) is int]
        if len(ends) < len(listed):
            raise UserError(
                f"generation_config.json: eos_token_id={found!r}: expected a token's id, or a list"
            )
        return frozenset(ends)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The strings that end a text, as the model's generation configuration has them.

        Raises:
            UserError: it names something else.
        """
        settings = self.model.generation_config
        found: Any = None if settings is None else settings.stop_strings
        listed = [found] if isinstance(found, str) else found or []
        if not isinstance(listed, list | tuple) or not all(isinstance(s, str) for s in listed):
            raise UserError(
                f"generation_config.json: stop_strings={found!r}: expected text, or a list of texts"
            )
        return tuple(listed)

    def encode(self, text: str) -> list[int]:
        """Turn text into token ids."""
        assert self.tokenizer is not None
        return self.tokenizer(text)["input_ids"]

    def show(self, token_ids: Sequence[int]) -> str:
        """Turn tokens into text, special tokens included, as they are spelt."""
        assert self.tokenizer is not None
        return str(self.tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Turn token ids into text, without special tokens."""
        assert self.tokenizer is not None
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def embed(self, token_ids: Tensor) -> Tensor:  # [...] -> [..., H]
        """Look up what the first layer reads."""
        return self.model.get_input_embeddings()(token_ids).to(self.device)

    def unembed(self, hidden: Tensor) -> Tensor:  # [..., H] -> [..., V]
        """Turn last hidden states into the model's own logits, scaled and capped as it does."""
        return logits_of(self.model, hidden)

    def require_states(self, where: str) -> None:
        """Refuse a model whose logits are not a function of its last hidden states.

        Raises:
            UserError: nothing can be trained on them; `where` begins the message.
        """
        if self._states_differ is not None:
            raise UserError(
                f"{where}: {self.model.config.model_type} decodes, but can neither carry heads nor"
                f" teach: {self._states_differ}"
            )

    def length(self, row: int) -> int:
        """Return the number of cells of a row."""
        return self._cache.lengths[row]

    @without_gradients
    def keep(self, row: int, prefix: int, nodes: Sequence[int] = ()) -> None:
        """Keep a row's first `prefix` cells and, of those behind, only the ones listed."""
        self._cache.keep(row, prefix, nodes)
        self._let_go(row)

    @without_gradients
    def prefill(
        self, rows: Sequence[int], token_ids: Sequence[Sequence[int]], layers: Sequence[Layer] = ()
    ) -> list[dict[Layer, Tensor]]:
        """Append ordinary text to rows, without logits, in chunks; see `CausalLM.prefill`."""
        pieces: list[dict[Layer, list[Tensor]]] = [{layer: [] for layer in layers} for _ in rows]
        longest = max((len(ids) for ids in token_ids), default=0)
        for start in range(0, longest, self._prefill_chunk):
            chunks = [list(ids[start : start + self._prefill_chunk]) for ids in token_ids]
            active = [index for index, chunk in enumerate(chunks) if chunk]
            some_rows = [rows[index] for index in active]
            lengths = [self._cache.lengths[row] for row in some_rows]
            new = NewCells(some_rows, pad([chunks[index] for index in active], self.device))
            cells = self._placed(new)
            # The model below the vocabulary head: nobody asks for the logits of a prompt.
            hidden = self._run(self.model.base_model, cells, layers).hidden
            for number, index in enumerate(active):
                num_new = len(chunks[index])
                self._cache.keep(rows[index], lengths[number] + num_new, ())  # without the padding
                self._let_go(rows[index])
                for layer in layers:
                    pieces[index][layer].append(hidden[layer][number, :num_new])
        return [{layer: self._joined(parts) for layer, parts in piece.items()} for piece in pieces]

    def _joined(self, parts: list[Tensor]) -> Tensor:  # [n, H]
        if parts:
            return torch.cat(parts)
        return torch.zeros(0, self.state_size, dtype=self.model.dtype, device=self.device)

    @without_gradients
    def forward(
        self,
        rows: Sequence[int],
        token_ids: Tensor,
        positions: Tensor | None = None,
        attend: Tensor | None = None,
        layers: Sequence[Layer] = (),
    ) -> Forward:
        """Append M cells to each row and return their logits; see `CausalLM.forward`."""
        cells = self._placed(NewCells(rows, token_ids, positions, attend))

        def by_program(programs: Programs, span: Span) -> Forward:
            found = programs(self._cache, span, cells, layers, self._eagerly)
            self.num_calls += 1
            self.num_cells += len(span.rows) * cells.num_new
            return found

        found = self._by_programs(rows, by_program)
        if found is not None:
            return found
        return self._run(self.model, cells, layers)

    @without_gradients
    def draft_chain(
        self,
        rows: Sequence[int],
        token_ids: Tensor,
        lengths: Sequence[int],
        chain: DraftChain,
        uniforms: Sequence[Sequence[float]],
    ) -> DraftedChain | None:
        """Append tokens to rows and draft a chain behind them; see `ChainDrafter.draft_chain`."""

        def by_program(programs: Programs, span: Span) -> DraftedChain:
            numbers = on_device(uniforms, self.device, torch.float64)
            cells = ChainCells(rows, token_ids, lengths, numbers)
            found = programs.draft(self._cache, span, cells, chain, self._eagerly)
            self.num_calls += chain.depth
            self.num_cells += len(span.rows) * (cells.num_new + chain.depth - 1)
            return found

        return self._by_programs(rows, by_program)

    def _by_programs(self, rows: Sequence[int], run: Callable[[Programs, Span], R]) -> R | None:
        """Run something by programs; None: there are none that could, here or from here on."""
        if self._programs is None or not self._cache.is_allocated:
            return None
        span = Span.around(rows, len(self._cache.lengths))
        if span is None:
            return None
        try:
            return run(self._programs, span)
        except RefusedError as reason:
            if not self._chose:
                raise
            self._run_by(next_best(self.runtime, self.device))
            print(f"runtime=auto: {self.runtime} from here on, since {reason}")
            return None

    def read_part(
        self, part: torch.nn.Module, cells: NewCells, ahead: Sequence[int] | None = None
    ) -> Tensor:
        """Run some of the model's layers on new cells; return their logits, if they have any.

        With `ahead` row b's cells stand so many places behind its last one, and are not counted:
        its length stays as it is, until a forward without has read the same tokens.
        """
        before = list(self._cache.lengths), self.num_calls, self.num_cells
        for row, num in zip(cells.rows, ahead or [0] * len(cells.rows), strict=True):
            self._cache.lengths[row] += num
        logits = self._run(part, self._placed(cells), ()).logits
        if ahead is not None:
            self._cache.lengths, self.num_calls, self.num_cells = before
        return logits

    def arrange(self, row: int, order: Sequence[int], num_layers: int) -> None:
        """Put cells that `read_part` left behind a row into another order, in its first layers."""
        self._cache.arrange(row, order, num_layers)

    def _let_go(self, row: int) -> None:
        """Drop the cells of a row that no later token sees, where there are such."""

    def _placed(self, cells: NewCells) -> NewCells:
        """Say where new cells stand and what they see, where a cache does not hold all cells."""
        return cells

    def _eagerly(self, cells: NewCells, layers: Sequence[Layer]) -> Sequence[Tensor]:
        """Return logits and hidden states of new cells as if the model had not been asked."""
        before = list(self._cache.lengths), self.num_calls, self.num_cells
        found = self._run(self.model, cells, layers)
        self._cache.lengths, self.num_calls, self.num_cells = before
        return [found.logits, *found.hidden.values()]

    def _run(self, module: torch.nn.Module, cells: NewCells, layers: Sequence[Layer]) -> Forward:
        """Run the model, or what is below its vocabulary head and has no logits, on new cells."""
        rows, num_new = cells.rows, cells.num_new
        starts = [self._cache.lengths[row] for row in rows]
        self._cache.place(rows, num_new, self.device)
        if cells.attend is None and cells.positions is None and self._plain.serves(starts):
            positions, attention_mask = self._plain.at(starts[0], num_new)
        else:
            positions, attend = cells.placed(starts, self.max_length - 1)
            attention_mask = self._mask_kind.of_cells(
                self._cache, rows, positions, attend, self.model.dtype
            )
        with heard(self.model, layers) as states:
            output = module(
                input_ids=moved(cells.token_ids, self._entry),
                position_ids=moved(positions, self._entry),
                attention_mask=moved(attention_mask, self._entry)
                if self._mask_kind.attends
                else None,
                **{self._cache_word: self._cache},
                use_cache=True,
            )
        self.num_calls += 1
        self.num_cells += cells.token_ids.numel()
        for row, start in zip(rows, starts, strict=True):
            self._cache.lengths[row] = start + num_new
        hidden = {layer: states[layer].to(self.device) for layer in layers}
        return Forward(getattr(output, "logits", self._no_logits).to(self.device), hidden)


def head_shape(model: PreTrainedModel) -> tuple[int, int]:
    """Return V and H, the widths of a model's logits and of its last hidden states."""
    head = model.get_output_embeddings()
    if head is None:
        config = model.config.get_text_config()
        return config.vocab_size, config.hidden_size
    size, width = head.weight.shape
    return size, width
