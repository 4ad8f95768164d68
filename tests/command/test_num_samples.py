"""`prompts.num_samples`: in runs, their reports, recordings and what resumes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specdec.core.trace import TextKey
from specdec.recording.recorded import read_recording
from specdec.results.run_dir import read_clock, read_tally, read_traces
from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")


def texts(run: str) -> dict[TextKey, tuple[int, ...]]:
    return {trace.key: trace.output_ids for trace in read_traces(Path(run))}


def options_of(tiny: Tiny, run: str, *more: str) -> list[str]:
    """Two prompts, one of them of two turns."""
    rows = [{"id": "chat", "turns": ["first", "second"]}, {"id": "short", "prompt": "print("}]
    Path("turns.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tiny.options(run, "prompts.path=turns.jsonl", "sampling.temperature=1", *more)


def test_each_prompt_is_decoded_so_many_times(tiny: Tiny, cli: CommandLine) -> None:
    """Other batches, interruptions and one sample alone: the texts are the same."""
    options = options_of(tiny, "run", "proposer=ngram", "prompts.num_samples=3")
    ended = cli("decode", *options)
    assert ended.status == 0, ended.err
    assert "2 prompts, 3 samples of each" in ended.out
    found = texts("run")
    turns = [("chat", 0), ("chat", 1), ("short", 0)]
    assert sorted(found) == sorted((name, n, turn) for name, turn in turns for n in range(3))
    assert len(set(found.values())) == 9
    tally = read_tally(Path("run"))
    assert (tally.num_prompts, tally.total("num_turns")) == (2, 9)
    assert tally.total("clocked.num_steps") == tally.total("num_steps"), "some had no clock"
    summary = json.loads(Path("run/summary.json").read_text(encoding="utf-8"))
    assert (summary["num_prompts"], summary["num_turns"]) == (2, 9)
    shown = [json.loads(line) for line in Path("run/tokens.jsonl").read_text().splitlines()]
    assert {(row["prompt_id"], row["sample"]) for row in shown} <= {("chat", 0), ("short", 0)}

    assert cli("decode", *options_of(tiny, "alone", "proposer=ngram", "batch=4")).status == 0
    assert texts("alone").items() <= found.items()

    # One turn of one sample is lost: it is decoded again, and nothing else.
    lines = Path("run/traces.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _key(line) != ("chat", 1, 1)]
    Path("run/traces.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    seconds = {trace.key: trace.prefill_seconds for trace in read_traces(Path("run"))}
    assert cli("decode", *options).status == 0
    assert texts("run") == found
    again = {trace.key: trace.prefill_seconds for trace in read_traces(Path("run"))}
    assert {key for key in again if again[key] != seconds.get(key)} == {
        ("chat", 1, 0), ("chat", 1, 1)
    }  # fmt: skip
    assert len(read_clock(Path("run"))) >= 7

    # With another number it is another run.
    ended = cli("decode", *options, "prompts.num_samples=2")
    assert ended.status != 0
    assert "holds a run of other options" in ended.err


def _key(line: str) -> TextKey:
    row = json.loads(line)
    return row["prompt_id"], row["sample"], row["turn"]


def test_samples_are_recorded_replayed_and_compared(tiny: Tiny, cli: CommandLine) -> None:
    options = options_of(tiny, "run", "prompts.num_samples=3")
    assert cli("decode", *options).status == 0
    assert cli("record", "run=run", "output=recording").status == 0
    recorded = read_recording(Path("recording"))
    assert {text.key: text.output_ids for text in recorded.texts} == texts("run")
    replay = ("grid.proposer=[draft_model]", "grid.gamma=[2]", "output=replayed")
    ended = cli("replay", "recording=recording", *replay, f'options=["draft.path={tiny.draft}"]')
    assert ended.status == 0, ended.err
    (run,) = (path.parent for path in Path("replayed").glob("*/tally.jsonl"))
    tally = read_tally(run)
    assert (tally.num_prompts, tally.total("num_turns")) == (2, 9)

    arms = 'arms=["proposer=none","proposer=ngram verification=match"]'
    ended = cli("compare", *options_of(tiny, "both", "prompts.num_samples=2", arms))
    assert ended.status == 0, ended.err
    runs = [texts(str(file.parent)) for file in Path("both").glob("*/traces.jsonl")]
    assert runs[0] == runs[1], "match emits what the verifier draws, sample by sample"
    assert runs[0].items() <= texts("run").items()


@pytest.mark.parametrize("greedy", ["sampling.temperature=0", "sampling.top_k=1"])
def test_samples_that_would_all_be_the_same_are_refused(
    greedy: str, tiny: Tiny, cli: CommandLine
) -> None:
    ended = cli("decode", *options_of(tiny, "run", "prompts.num_samples=2", greedy))
    assert ended.status != 0
    assert "prompts.num_samples=2" in ended.err
    assert greedy in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not list(Path("run").glob("*.jsonl"))
