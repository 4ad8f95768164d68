"""The part of `calibrate` that reads a text: the ranks of its next tokens, together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from specdec.calibration.path_counts import PathCounts, calibration
from specdec.calibration.positional_acceptance import PositionalMeter
from specdec.calibration.ranks import Ranker, draft_ranks, head_ranks, ranks_along
from specdec.core.errors import UserError
from specdec.heads.base import DraftHeads
from specdec.lab.calibration.sampled_children import build_meter, measure_positional
from specdec.lab.calibration.spec import DRAFT_DEPTH, CalibrationSpec, require_depth
from specdec.lm.hf import HFCausalLM
from specdec.lm.loadable import vocabulary_size
from specdec.proposer.early_exit import EarlyExit
from specdec.proposer.feature_proposer import FeatureProposer
from specdec.results.progress import Progress
from specdec.training.data.samples import Samples


@dataclass(frozen=True)
class Instruments:
    """What is measured with, loaded."""

    reader: HFCausalLM  # the model that the ranks are read with
    max_length: int  # tokens that all models can read
    ranker: Ranker
    meter: PositionalMeter | None  # of sampled children, if they are wanted


def along_text(spec: CalibrationSpec) -> tuple[dict[str, Any], HFCausalLM]:
    """Return what a calibration file holds of a text, and the model that read it."""
    instruments = load_instruments(spec)
    samples, num_samples = read_samples(spec, instruments.max_length)
    counts = PathCounts(rank(spec, instruments.ranker, samples, num_samples), spec.max_rank)
    if not counts.num_positions:
        raise UserError(
            f"data.path={spec.data_path!r}: {counts.depth} counted tokens stand nowhere in a row"
        )
    found = calibration(counts, spec.max_nodes)
    if not found["joint"]["paths"]:
        raise UserError(
            f"max_rank={spec.max_rank}: no token of {spec.data_path!r} has so low a rank"
        )
    if instruments.meter is not None:
        found["positional"] = measure_positional(spec, instruments.meter, samples, num_samples)
    return found, instruments.reader


def load_instruments(spec: CalibrationSpec) -> Instruments:
    """Load the models that read the text, and say how its tokens are ranked."""
    if not spec.drafts_alone:
        verifier = spec.verifier.build()
        heads = load_heads(spec, verifier)
        require_depth(spec.depth, heads.max_depth)
        depth = spec.depth or heads.num_heads
        meter = build_meter(spec, verifier, heads, depth) if spec.positional else None
        ranker = partial(head_ranks, heads, verifier, depth)
        return Instruments(verifier, verifier.max_length, ranker, meter)
    draft = load_draft(spec)
    vocab_size = vocabulary_size(spec.verifier.checkpoint)
    ranker = partial(draft_ranks, draft, vocab_size, spec.depth or DRAFT_DEPTH)
    if not spec.positional:
        return Instruments(draft, draft.max_length, ranker, None)
    verifier = spec.verifier.build()
    meter = build_meter(spec, verifier, draft, depth=1)
    return Instruments(draft, min(draft.max_length, verifier.max_length), ranker, meter)


def load_draft(spec: CalibrationSpec, verifier: HFCausalLM | None = None) -> HFCausalLM:
    """Load the draft model, or the layers of the verifier that draft, as a model of its own."""
    if spec.draft is not None:
        return spec.draft.build()
    proposer = spec.proposer.build_for(verifier or spec.verifier.build())
    assert isinstance(proposer, EarlyExit)
    return proposer.alone().model


def load_heads(spec: CalibrationSpec, verifier: HFCausalLM) -> DraftHeads:
    """Load the heads of a proposer.

    Raises:
        UserError: it has none of ours.
    """
    proposer = spec.proposer.build_for(verifier)
    if not isinstance(proposer, FeatureProposer):
        raise UserError(f"proposer={spec.proposer.name}: expected a HeadsProposer, with its heads")
    return proposer.heads


def read_samples(spec: CalibrationSpec, max_length: int) -> tuple[Samples, int]:
    """Read the text, and say how many samples of it are wanted."""
    # The verifier's, whoever drafts: its chat template, and its padding, which it may have written.
    verifier = spec.verifier.checkpoint
    assert spec.data_path is not None
    samples = Samples.read(
        spec.data_path,
        verifier.tokenizer,
        min(spec.data["max_length"], max_length),
        spec.seed,
        vocab_size=vocabulary_size(verifier),
        reading=spec.reading.build(),
    )
    for note in samples.notes():
        print(note)
    return samples, min(spec.data["limit"] or len(samples), len(samples))


def rank(
    spec: CalibrationSpec, ranker: Ranker, samples: Samples, num_samples: int
) -> Tensor:  # [S, D]
    """Rank the tokens of all samples, or of the first `data.limit` in random order."""
    pieces: list[Tensor] = []
    with Progress(num_samples, "rank", "sample") as bar:
        for piece in ranks_along(samples, ranker, num_samples, spec.batch, spec.max_rank):
            pieces.append(piece)
            bar.update(min(spec.batch, bar.left))
    return torch.cat(pieces)
