"""Replay a recorded text with a given quality: the engine's speed without a model's."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

import yaml

from specdec.core.errors import Unfit, UserError, require, require_int, require_number
from specdec.core.jsonl import read_jsonl
from specdec.core.trace import request_id
from specdec.core.tree import CandidateTree
from specdec.core.values import CandidateSource, Context, Draw, Layer, Proposal, Verdict


class Recorded:
    """Propose the next gamma tokens of a recorded text, each right with probability `accuracy`.

    Wrong tokens are uniform over the rest of the vocabulary and drawn independently of the
    verifier's noise, so the text stays lossless. At temperature 0, with the text of the same
    verifier, `accuracy` is the acceptance rate of each token given that it is tested. At other
    temperatures decode with another seed than the recording's: its tokens were drawn with the
    noise of that seed, which must not judge them again; `from_run` refuses it.

    Args:
        texts: token ids by the name of a request.
        gamma: draft tokens of a step.
        accuracy: how often a token is right, from 0 to 1.

    Raises:
        UserError: a number is out of its range.
    """

    source = CandidateSource.TEXT
    draw = Draw.DETERMINISTIC
    layers: Sequence[Layer] = ()

    def __init__(self, texts: Mapping[str, Sequence[int]], gamma: int, accuracy: float = 1.0):
        require_int("gamma", gamma, 1)
        require_number("accuracy", accuracy, 0.0, 1.0)
        self.max_depth = gamma
        self._texts = texts
        self._accuracy = accuracy
        self._vocab_size = 0

    @classmethod
    def from_run(
        cls, path: str | None, gamma: int, accuracy: float = 1.0, seed: int | None = None
    ) -> "Recorded":
        """Read the outputs of a run directory; `seed` is the one that will decode.

        Raises:
            UserError: there is no `traces.jsonl` in that folder, or its texts were drawn at a
                temperature with this very seed.
        """
        require(bool(path), "path", path, "a run directory to take the text from")
        traces = Path(str(path)) / "traces.jsonl"
        if not traces.is_file():
            raise UserError(f"path={path!r}: no traces.jsonl in that folder")
        _refuse_own_noise(traces.with_name("config.yaml"), seed)
        texts: dict[str, Sequence[int]] = {}
        for number, row in read_jsonl(traces):
            missing = {"prompt_id", "turn", "output_ids"} - set(row)
            if missing:
                raise UserError(f"{traces}:{number}: not a trace: no {', '.join(sorted(missing))}")
            name = request_id(row["prompt_id"], row["turn"], row.get("sample", 0))
            texts[name] = row["output_ids"]
        return cls(texts, gamma, accuracy)

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        """Learn what a wrong token can be."""
        self._vocab_size = vocab_size

    def reset(self, contexts: Sequence[Context]) -> None:
        """Refuse a request that was not recorded."""
        for context in contexts:
            if context.request_id not in self._texts:
                raise UserError(f"nothing recorded for prompt {context.request_id}")

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """Copy from the recording, with errors."""
        return [Proposal(self._candidates(each), num_draft_calls=0) for each in contexts]

    def _candidates(self, context: Context) -> CandidateTree:
        text = self._texts[context.request_id]
        start = len(context.token_ids) - context.num_prompt_tokens
        length = min(self.max_depth, context.max_depth)
        right = takewhile(lambda token: token < self._vocab_size, text[start : start + length])
        draft_ids = [self._spoilt(token, context) for token in right]
        return CandidateTree.chain(context.token_ids[-1], draft_ids)

    def _spoilt(self, token: int, context: Context) -> int:
        if context.draft_stream.accept(self._accuracy):
            return token
        return (token + 1 + context.draft_stream.integer(self._vocab_size - 1)) % self._vocab_size

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        """The position in the text follows from the committed tokens."""


def _refuse_own_noise(config_path: Path, seed: int | None) -> None:
    """Refuse to let the noise that drew a text decide on it again: too much would be accepted."""
    if seed is None or not config_path.is_file():
        return
    config = yaml.safe_load(config_path.read_text(encoding="utf-8"))
    temperature = config["sampling"]["temperature"]
    if temperature > 0 and config["seed"] == seed:
        raise Unfit(
            f"seed={seed}: the texts in {str(config_path.parent)!r} were drawn with this seed at"
            f" temperature {temperature}; choose another, or their own noise would judge them"
        )
