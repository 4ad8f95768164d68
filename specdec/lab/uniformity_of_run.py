"""Do the texts of a run have exactly the verifier's distribution? Tested by where they fell."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from specdec.core.errors import UserError
from specdec.core.trace import request_id
from specdec.lab.arm import sampling_of
from specdec.lab.rendered_runs import read_spec, require_unchanged, texts_of_run
from specdec.lab.spec import ArmSpec, ModelPart
from specdec.lm.hf import HFCausalLM
from specdec.metrics.pit import MIN_TOKENS, Uniformity, uniformity
from specdec.recording.pit_values import Decoded, transforms
from specdec.recording.texts import Text
from specdec.results.progress import Progress
from specdec.results.run_dir import read_traces

MODELS = ("verifier", "draft")


def sampled_run(folder: Path, placed: Mapping[str, Any]) -> ArmSpec:
    """Read how a run was decoded, with `placed`: the device and the type to test it with.

    Raises:
        UserError: it was decoded at temperature 0.
    """
    models = {f"{node}.{name}": value for node in MODELS for name, value in placed.items()}
    found = read_spec(folder, changed={**placed, **models})
    if found.is_greedy:
        raise UserError(
            f"run={str(folder)!r}: decoded at temperature 0, where nothing is random; compare its"
            " texts with those of proposer=none (compare says whether they are the same)"
        )
    return found


def draft_of_run(spec: ArmSpec, path: str | None, placed: Mapping[str, Any]) -> ModelPart | None:
    """Return the draft model that texts may lean to: the run's own, or the one at `path`."""
    if path is not None:
        return replace(spec.draft, options={**spec.draft.options, "path": path, "revision": None})
    own = spec.proposer.draft_model
    return None if own is None else replace(own, options={**own.options, **placed})


def tested(
    folder: Path, spec: ArmSpec, draft: ModelPart | None, seed: int, batch: int
) -> Uniformity:
    """Score all tokens of a run and test where they fell.

    Args:
        folder: the run directory.
        spec: of the run, as `sampled_run` reads it.
        draft: a model, to see whether texts lean to it; None: none.
        seed: of the test's own noise.
        batch: texts that are read at a time.

    Raises:
        UserError: there are too few tokens, or what they came from has changed.
    """
    require_unchanged(folder, spec)
    traces = read_traces(folder)
    num_tokens = sum(len(trace.output_ids) for trace in traces)
    if num_tokens < MIN_TOKENS:
        raise UserError(
            f"run={str(folder)!r}: {num_tokens} tokens; expected at least {MIN_TOKENS} to test"
        )
    reader = None if draft is None else draft.build()
    if reader is not None and reader.translation is not None:
        print(f"{folder}: texts are not held against the draft, which reads them in other tokens")
        reader = None
    verifier = spec.verifier.build()
    texts = texts_of_run(traces, spec, verifier)
    longest = max(len(text.prompt_ids) + len(text.output_ids) for text in texts)
    if reader is not None and longest > reader.max_length:
        print(f"{folder}: texts of {longest} tokens, of which the draft reads {reader.max_length}")
        reader = None
    return _uniformity(texts, verifier, reader, spec, seed, batch)


def _uniformity(
    texts: list[Text],
    verifier: HFCausalLM,
    draft: HFCausalLM | None,
    spec: ArmSpec,
    seed: int,
    batch: int,
) -> Uniformity:
    sampling, decoded = sampling_of(spec, verifier), list(map(_decoded, texts))
    numbers: list[Any] = []
    with Progress(len(texts), "score", "text") as bar:
        for text in transforms(decoded, verifier, sampling, seed, batch, draft):
            numbers.append(text.numpy())
            bar.update()
    by_draft = None if draft is None else [text[1] for text in numbers]
    return uniformity([text[0] for text in numbers], by_draft)


def _decoded(text: Text) -> Decoded:
    name = request_id(text.prompt_id, text.turn, text.sample)
    return Decoded(name, text.prompt_ids, text.output_ids, text.budget)
