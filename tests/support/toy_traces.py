"""Every proposer with every tree and every rule, decoded by toy models: most of `make traces`.

Which ones there are is read from the YAML files, so that a new one is included by itself.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from specdec.core.errors import Unfit
from specdec.core.sampling import Sampling
from specdec.core.trace import Trace
from specdec.core.values import CandidateSource, each_draw
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.proposer.datastore import Datastore, write_datastore
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.ngram import NGram
from specdec.proposer.none import NoProposer
from specdec.tree.chain import Chain
from specdec.verification.rejection import Rejection
from tests.support.families import random_ids
from tests.support.toy_parts import Part, stems, toy_heads, toy_model

HOT, GREEDY = Sampling(0.6, top_p=0.95), Sampling(0)
STOPPING = Stopping(12, frozenset({1}))
LENGTHS = (9, 4, 13)  # of the prompts
# Trees that want a file or are tried in several ways; all others are as their YAML says.
TREES: dict[str, list[dict[str, Any]]] = {
    "calibrated": [{"num_nodes": 5}],
    "sampled": [{"draw": draw} for draw in ("without_replacement", "iid", "top_plus_one")],
    "sequoia": [{"num_nodes": 5}],
}
MEASURED = {  # what the file holds
    "joint": {"paths": [[0], [1], [0, 0], [0, 1], [2], [0, 0, 0], [1, 0]]},
    "positional": {"acceptance": [[0.5, 0.2, 0.1]], "all_depths": True},
}
# Further ways to decode a chain of a draft under rejection, and heads of other shapes.
SAMPLINGS = {
    "repetition_penalty": Sampling(0.8, repetition_penalty=1.5),
    "top_k,min_p": Sampling(0.8, top_k=5, min_p=0.1),
}
DRAFTS = {"temperature": 0.5, "min_confidence": 0.5}
HEADS: list[tuple[str, dict[str, Any]]] = [
    ("chained", {"link": "hidden"}),
    ("chained", {"link": "both", "num_layers": 2, "own_vocabulary_head": False}),
    ("chained", {"link": "token", "prefix_attention": True}),
    ("medusa", {"correction": "markov", "rank": 3}),
    ("block", {"mask": "bidirectional", "labels": "in_place", "correction": "none"}),
    ("block", {"num_layers": 2, "rank": 3}),
]


def written(folder: Path, texts: Sequence[Sequence[int]]) -> Datastore:
    """Make a datastore of texts."""
    write_datastore(texts, folder, "toy")
    return Datastore.open(str(folder), "path")


class Decoded(NamedTuple):
    """The name of a case, and its texts."""

    name: str
    traces: Sequence[Trace]


class ToyTraces:
    """Decodes all cases; needs a folder to write into."""

    def __init__(self, folder: Path):
        self._measured = folder / "tree.json"
        self._measured.write_text(json.dumps(MEASURED), encoding="utf-8")
        self._verifier = toy_model()
        self._deeper = toy_model(num_layers=2)  # some of whose layers draft
        self._rules = {name: Part("verification", name).build({}) for name in stems("verification")}
        plain = self._decode(NoProposer(), Rejection(), GREEDY)
        # What proposers may take, but for heads and trees.
        draft = toy_model(noise=0.05)
        self._given = {
            "verifier": self._verifier,
            "model": draft,
            "parts": [NGram(3), DraftModel(draft, Chain(3))],
            "datastore": written(folder / "datastore", [trace.output_ids for trace in plain]),
            "texts": {trace.prompt_id: trace.output_ids for trace in plain},
            "gamma": 3,
            "inner": NGram(3),
            "rule": Rejection(),
            "accuracy": 0.8,
        }

    def cases(self) -> Iterator[Decoded]:
        """Decode every combination in which the rule can decide, and some more."""
        for proposer in [Part("proposer", name) for name in stems("proposer")]:
            for name, given in self._grown(proposer):
                yield from self._decided(name, proposer, given)
        yield from self._chains()
        yield from self._heads()

    def _grown(self, proposer: Part) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the trees that a proposer takes, and what else it takes."""
        given = dict(self._given)
        if proposer.kind.source is CandidateSource.VERIFIER:
            given["verifier"] = self._deeper
        elif hasattr(proposer.kind, "kind"):
            given["heads"] = toy_heads(proposer.kind.kind, self._verifier)
        if "tree" not in proposer.takes:
            yield proposer.name, given
            return
        for tree in stems("tree"):
            for options in TREES.get(tree, [{}]):
                grown = given | {"tree": self._tree(tree, options)}
                yield f"{proposer.name} {spelt(tree, options)}", grown

    def _tree(self, name: str, options: Mapping[str, Any]) -> Any:
        return Part("tree", name).build({"path": str(self._measured), **options})

    def _decided(self, name: str, proposer: Part, given: Mapping[str, Any]) -> Iterator[Decoded]:
        """Decode with every rule that can decide; greedily with one, whose texts are all rules'."""
        try:
            draws = each_draw(proposer.build(given).draw)
        except Unfit:  # it does not grow this tree
            return
        fitting = [
            (name, rule)
            for name, rule in self._rules.items()
            if all(draw is None or draw in rule.defined_for for draw in draws)
        ]
        for rule_name, rule in fitting:
            yield Decoded(f"{name} {rule_name}", self._decode(proposer.build(given), rule))
        rule_name, rule = fitting[0]
        traces = self._decode(proposer.build(given), rule, GREEDY)
        yield Decoded(f"{name} {rule_name} T=0", traces)

    def _chains(self) -> Iterator[Decoded]:
        """Decode a chain of a draft in further ways."""

        def case(name: str, option: Mapping[str, Any], **more: Any) -> Decoded:
            chain = self._tree("chain", option)
            draft = Part("proposer", "draft_model").build(
                self._given | dict(option) | {"tree": chain}
            )
            traces = self._decode(draft, Rejection(), **more)
            return Decoded(f"draft_model chain rejection: {name}", traces)

        for name, sampling in SAMPLINGS.items():
            yield case(name, {}, sampling=sampling)
        for name, value in DRAFTS.items():
            yield case(f"{name}={value}", {name: value})
        yield case("judges", {}, judges={name: self._rules[name] for name in ("block", "typical")})

    def _heads(self) -> Iterator[Decoded]:
        """Decode a tree of heads of other shapes."""
        tree = self._tree("sampled", {"widths": [2, 1, 1]})
        for kind, options in HEADS:
            proposer = Part("proposer", kind)
            heads = toy_heads(proposer.kind.kind, self._verifier, **options)
            built = proposer.build(self._given | {"heads": heads, "tree": tree})
            name = f"{kind} sampled rejection: {spelt('heads', options)}"
            yield Decoded(name, self._decode(built, Rejection()))

    def _decode(
        self,
        proposer: Any,
        rule: Any,
        sampling: Sampling = HOT,
        judges: Mapping[str, Any] | None = None,
    ) -> list[Trace]:
        verifier = getattr(proposer, "verifier", self._verifier)
        parts = (verifier, proposer, rule, sampling, STOPPING)
        decoder = SpeculativeDecoder(*parts, batch=2, allow_lossy=True, judges=judges)
        requests = [
            Request(f"prompt {length}", random_ids(length, seed=length), keep_candidates=True)
            for length in LENGTHS
        ]
        return [timed(trace) for trace in decoder.decode(requests)]


def spelt(name: str, options: Mapping[str, Any]) -> str:
    """Name a part and its options, in one word."""
    return ",".join([name, *(f"{key}={value}" for key, value in options.items())])


def timed(trace: Trace) -> Trace:
    """Put round numbers in place of the clock's."""
    seconds = {"propose_seconds": 0.25, "verify_seconds": 0.5, "other_seconds": 0.125}
    steps = tuple(replace(step, **seconds) for step in trace.steps)
    return replace(trace, steps=steps, prefill_seconds=1.0)
