"""Training text that the verifier wrote itself: what it says is what it will accept.

DistillSpec (Zhou et al. 2023, arXiv 2310.08461, section 4) finds drafts trained on text of the
models themselves better aligned than those trained on a fixed data set.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from specdec.core.digest import digest_of
from specdec.core.errors import RowError, UserError, require, require_int
from specdec.core.sampling import Sampling
from specdec.core.trace import Trace
from specdec.decoding.request import Request
from specdec.lm.cached_as import cached_like
from specdec.lm.fingerprint import DIGESTS, fingerprint
from specdec.lm.hf import HFCausalLM
from specdec.results.progress import Progress
from specdec.training.data.answer_file import AnswerFile
from specdec.training.data.distill_prompts import Asking
from specdec.training.data.left_out import LeftOut
from specdec.training.data.reading import Reading, Source
from specdec.training.data.sources import Sources
from specdec.training.data.text import data_digest
from specdec.training.writer import writer

SECONDS_BETWEEN_LOOKS = 1.0


class Distill:
    """Have the verifier answer training data anew, once, into the JSONL file at `path`.

    Of a conversation every turn of the assistant is answered, after the messages of the data before
    it; of plain text the first `prompt_tokens` tokens of each block of `prompt_tokens` +
    `max_new_tokens` are continued. Rows are `id`, `token_ids` (the prompt's first),
    `num_prompt_tokens`, `finish_reason` and what vouches for them. `limit` is the largest number
    of rows.

    Randomness is keyed by `seed` and the row's id, so neither `batch` nor interruptions change the
    answers, apart from the rounding of the logits, which depends on what else is in a batch.
    `path=None` is off.

    Args:
        path: of the answers, a .jsonl file; None: off.
        temperature, top_k, top_p: of the answers.
        max_new_tokens: of an answer, at most.
        prompt_tokens: of each block of a plain text.
        batch: answers that are written at a time.
        limit: of rows; None: all.
        seed: of the answers.

    Raises:
        UserError: an option is out of its range.
    """

    def __init__(
        self,
        path: str | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        max_new_tokens: int = 256,
        prompt_tokens: int = 64,
        batch: int = 16,
        limit: int | None = None,
        seed: int = 0,
    ):
        named = path is None or (isinstance(path, str) and path.endswith(".jsonl"))
        require(named, "path", path, "a file name ending in .jsonl, or null")
        for name, value, minimum in (
            ("max_new_tokens", max_new_tokens, 1),
            ("prompt_tokens", prompt_tokens, 1),
            ("batch", batch, 1),
            ("limit", 1 if limit is None else limit, 1),
            ("seed", seed, 0),
        ):
            require_int(name, value, minimum)
        self._path = path
        self._sampling = Sampling(temperature, top_k, top_p)
        self._max_new_tokens = max_new_tokens
        self._prompt_tokens = prompt_tokens
        self._batch = batch
        self._limit = limit
        self._seed = seed

    @property
    def is_on(self) -> bool:
        """Whether the data are answered anew."""
        return self._path is not None

    def data_path(
        self, verifier: HFCausalLM, data: Source | str, reading: Reading | None = None
    ) -> str:
        """Return the file to train on: that of `data` itself, or its answers once all are there.

        The first of several processes writes them, on its accelerator; the others wait.

        Raises:
            UserError: most of `data` cannot be read or rendered (with `data.strict`, any of
                it), nothing in it fits the verifier's context, or the file at `path` holds
                something else.
        """
        reading = reading or Reading()
        source = reading.source(data, "data.path") if isinstance(data, str) else data
        if self._path is None:
            return source.path
        answers = AnswerFile(self._path, self._settings(verifier, source, reading))
        process = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
        if process.is_main_process:
            assert process.device is not None  # it is initialised
            if not answers.is_complete():
                with answers.held():
                    self._answer_once(verifier, process.device, source, reading, answers)
        else:
            # Not at a barrier: those give up after ten minutes or thirty, and this may take hours.
            while not answers.is_complete():
                time.sleep(SECONDS_BETWEEN_LOOKS)
        return self._path

    def _settings(
        self, verifier: HFCausalLM, source: Source, reading: Reading
    ) -> dict[str, object]:
        """Name all that decides what the answers are."""
        known = fingerprint(verifier)
        assert verifier.tokenizer is not None
        sources = Sources.of(verifier)
        return {
            "verifier": [known[name] for name in DIGESTS],
            "dtype": known["dtype"],
            "chat_template": digest_of(str(verifier.tokenizer.chat_template).encode()),
            "data": data_digest(source),
            "field": source.field,
            "share": None if source.share is None else list(astuple(source.share)),
            "roles": source.roles.more,
            "template_options": reading.options,
            "temperature": self._sampling.temperature,
            "top_k": self._sampling.top_k,
            "top_p": self._sampling.top_p,
            "max_new_tokens": self._max_new_tokens,
            "prompt_tokens": self._prompt_tokens,
            "limit": self._limit,
            "seed": self._seed,
            **({} if sources is None else {"start_id": sources.start_id}),
        }

    def _requests(self, verifier: HFCausalLM, source: Source, reading: Reading) -> list[Request]:
        """Return what to answer, and say what is left out."""
        assert verifier.tokenizer is not None
        length = self._prompt_tokens + self._max_new_tokens
        left_out = LeftOut()
        given = (reading.options, self._prompt_tokens, length, Sources.of(verifier))
        asking = Asking(verifier.tokenizer, *given)
        found: list[Request] = []
        context = f"the verifier's context of {verifier.max_length} tokens"
        for request in asking.requests(source, left_out):
            if len(found) == self._limit:
                break
            if len(request.token_ids) < verifier.max_length:
                found.append(request)
            else:
                left_out.add_answer(
                    RowError(request.where, f"a prompt that does not fit {context}")
                )
        left_out.num_samples = len(found)
        if not found and not left_out.rows:
            raise UserError(f"{source}: no prompt to answer that fits {context}")
        left_out.check(source, reading.strict)
        for line in left_out.lines():
            print(f"distill: {line}")
        return found

    def _answer_once(
        self,
        verifier: HFCausalLM,
        device: torch.device,
        source: Source,
        reading: Reading,
        answers: AnswerFile,
    ) -> None:
        """Write what is missing, unless another process has just done so."""
        if not answers.is_complete():
            with _placed(verifier, device) as placed:
                self._answer(placed, self._requests(verifier, source, reading), answers)

    def _answer(
        self, verifier: HFCausalLM, requests: Sequence[Request], answers: AnswerFile
    ) -> None:
        """Write what is missing, each text as soon as it ends."""
        ids = [request.request_id for request in requests]
        done = answers.begin(ids)
        missing = [request for request in requests if request.request_id not in done]
        prompts = {request.request_id: request.token_ids for request in missing}
        decoder = writer(verifier, self._sampling, self._max_new_tokens, self._batch, self._seed)
        with Progress(len(ids), "distill", "text", initial=len(done)) as bar:
            for trace in decoder.stream(missing):
                answers.append(_row(trace, prompts[trace.prompt_id]))
                bar.update()
        answers.finish(ids)


def _row(trace: Trace, prompt: Sequence[int]) -> dict[str, object]:
    """Return what `text.Written` reads."""
    return {
        "id": trace.prompt_id,
        "token_ids": [*prompt, *trace.output_ids],
        "num_prompt_tokens": len(prompt),
        "finish_reason": trace.finish_reason,
    }


@contextmanager
def _placed(verifier: HFCausalLM, device: torch.device) -> Iterator[HFCausalLM]:
    """Lend the verifier to a device, with a cache of its own."""
    model, home = verifier.model, verifier.device
    torch.nn.Module.to(model, device)
    try:
        yield cached_like(verifier, model)
    finally:
        torch.nn.Module.to(model, home)
