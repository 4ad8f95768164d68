"""Plain steps beside a job: what they say, what they cost, and what they must not touch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from specdec.core.trace import PlainSteps, Trace
from specdec.metrics import Tally, speedup, step_cost
from specdec.results.run_dir import read_clock, read_tally, read_traces
from specdec.results.trace_file import TraceFile
from tests.support.interrupting import stop_after

if TYPE_CHECKING:
    from conftest import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")

NUM_TOKENS = 12


def write_prompts(number: int, turns: int = 1) -> str:
    rows = [
        {"id": f"p{i}", "turns": [f"add({i}, {turn})" for turn in range(turns)]}
        for i in range(number)
    ]
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return "prompts.path=prompts.jsonl"


def decoded(cli: CommandLine, tiny: Tiny, folder: str, *options: str) -> Tally:
    ended = cli("decode", *tiny.options(folder, *options))
    assert ended.status == 0, ended.err
    return read_tally(Path(folder))


def summary_of(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "summary.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("turns", [1, 2])
def test_one_token_at_a_time_takes_one_plain_step_a_token(
    cli: CommandLine, tiny: Tiny, ticking: SimpleNamespace, batch: int, turns: int
) -> None:
    """The consistency check of the clock itself, with as many requests in flight."""
    prompts = write_prompts(8, turns)
    tally = decoded(cli, tiny, "run", prompts, "proposer=none", f"batch={batch}")
    assert step_cost(tally).value == pytest.approx(1.0)
    found = summary_of("run")["speedup"]
    assert found["value"] == pytest.approx(1.0)
    assert found["n"] >= 6
    assert found == speedup(tally).to_row()


def test_a_machine_that_slows_down_in_the_middle_slows_the_clock_too(
    cli: CommandLine, tiny: Tiny, ticking: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = import_module("specdec.lab.arm").Arm
    decode, started = arm.decode, list[str]()

    def slowing(self: Any, prompts: Any, looked_at: Any = ()) -> Iterator[Trace]:
        started.extend(prompt.prompt_id for prompt in prompts)
        ticking.pace = 1.0 if len(started) <= 4 else 10.0
        yield from decode(self, prompts, looked_at)

    monkeypatch.setattr(arm, "decode", slowing)
    tally = decoded(cli, tiny, "run", write_prompts(8), "proposer=ngram", "tree.gamma=2")
    assert step_cost(tally).value == pytest.approx(1.0, abs=0.05), "steps are all three looks"
    seconds = tally.column("decode_seconds") / tally.column("num_steps")
    assert seconds[-1] == pytest.approx(10 * seconds[0])


@pytest.mark.parametrize("options", [("proposer=draft_model",), ("proposer=ngram", "batch=3")])
def test_the_clock_touches_no_token_and_no_second_of_the_arm(
    cli: CommandLine,
    tiny: Tiny,
    ticking: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
) -> None:
    overrides = (write_prompts(7), "sampling.temperature=1", *options)
    decoded(cli, tiny, "with", *overrides)
    clock = import_module("specdec.lab.plain_clock")
    monkeypatch.setattr(clock.PlainClock, "beside", lambda self, prompts, traces: [])
    decoded(cli, tiny, "without", *overrides)
    assert read_clock(Path("with"))
    assert not Path("without/clock.jsonl").exists()
    assert read_traces(Path("with")) == read_traces(Path("without"))
    rows = [summary_of(folder) for folder in ("with", "without")]
    assert rows[0]["tokens_per_second"] == rows[1]["tokens_per_second"]
    assert rows[0]["num_emitted"] == rows[1]["num_emitted"]
    assert rows[1]["speedup"]["value"] is None
    assert rows[1]["speedup"]["reason"].startswith("timings not comparable: no plain step")


def test_plain_steps_are_timed_in_the_middle_of_each_text(
    cli: CommandLine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the prompt and half of what is not timed, so that contexts are as long on average."""
    decoder = import_module("specdec.decoding.decoder").SpeculativeDecoder
    decode, prompt_lengths = decoder.decode, dict[str, int]()

    def noting(self: Any, requests: Any) -> list[Trace]:
        prompt_lengths.update({each.prompt_id: len(each.token_ids) for each in requests})
        return decode(self, requests)

    monkeypatch.setattr(decoder, "decode", noting)
    decoded(cli, tiny, "run", write_prompts(6), "proposer=draft_model")
    clock = {plain.prompt_id: plain for plain in read_clock(Path("run"))}
    for trace in read_traces(Path("run")):
        number = clock[trace.prompt_id].num_steps
        assert number == min(4, len(trace.output_ids))
        before = (len(trace.output_ids) - number) // 2
        assert prompt_lengths[trace.prompt_id] == trace.num_prompt_tokens + before


@pytest.mark.thorough
def test_the_clock_takes_a_tenth_of_a_job_at_most(
    cli: CommandLine, tiny: Tiny, ticking: SimpleNamespace
) -> None:
    """Six prompts are always timed, which an interval needs; further ones as time allows."""
    decoded(cli, tiny, "run", write_prompts(60), "proposer=none", "max_new_tokens=24")
    clock, traces = read_clock(Path("run")), read_traces(Path("run"))
    assert [plain.prompt_id for plain in clock[:6]] == [trace.prompt_id for trace in traces[:6]]
    assert 6 < len(clock) < 60
    own = sum(trace.prefill_seconds + 3 * len(trace.steps) for trace in traces)
    taken = sum(1 + plain.decode_seconds for plain in clock)  # a look at each prefill
    assert 0.08 < taken / own < 0.12


@pytest.mark.thorough
def test_an_interrupted_run_goes_on_with_its_clock(
    cli: CommandLine, tiny: Tiny, ticking: SimpleNamespace
) -> None:
    """Killed in the second turn of a prompt, and with a torn line: that prompt is timed anew."""
    options = (write_prompts(8, turns=2), "proposer=ngram")
    overrides, whole = tiny.options("run", *options), decoded(cli, tiny, "whole", *options)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 7)
        assert cli("decode", *overrides).status == 130
    assert {plain.prompt_id for plain in read_clock(Path("run"))} == {"p0", "p1", "p2"}
    identity = json.loads(Path("run/status.json").read_text(encoding="utf-8"))["identity"]
    # What a session that died after its prompts were written would have left of the fourth.
    stale = PlainSteps("p3", 0, 4, 1e6, 1e6, 12)
    TraceFile(Path("run/clock.jsonl"), identity).append(stale)
    with Path("run/clock.jsonl").open("a") as file:
        file.write('{"prompt_id": "p9", "tu')
    assert cli("decode", *overrides).status == 0
    clock = read_clock(Path("run"))
    assert sorted((plain.prompt_id, plain.turn) for plain in clock) == [
        (f"p{number}", turn) for number in range(8) for turn in (0, 1)
    ]
    assert max(plain.decode_seconds for plain in clock) < 1e3, "of the session that died"
    again = read_tally(Path("run"))
    assert again.columns.keys() == whole.columns.keys()
    for name in (name for name in whole.columns if not name.startswith("clock")):
        assert again.column(name).tolist() == pytest.approx(whole.column(name).tolist()), name
    faster = [summary_of(folder)["speedup"]["value"] for folder in ("run", "whole")]
    assert faster[0] == pytest.approx(faster[1])


def test_a_run_that_is_decoded_anew_has_a_new_clock(cli: CommandLine, tiny: Tiny) -> None:
    decoded(cli, tiny, "run", write_prompts(7), "proposer=none")
    decoded(cli, tiny, "run", "proposer=none", "resume=false")
    assert {plain.prompt_id for plain in read_clock(Path("run"))} == {"add", "print", "text"}


def test_arms_of_a_sweep_are_held_to_their_own_clocks(
    cli: CommandLine, tiny: Tiny, ticking: SimpleNamespace
) -> None:
    options = ("proposer=ngram", "tree.gamma=2,3", write_prompts(7))
    assert cli("decode", "-m", *tiny.options("sweep", *options)).status == 0
    runs = sorted(path.parent for path in Path("sweep").glob("*/clock.jsonl"))
    for run in runs:
        clock = read_clock(run)
        found = speedup(Tally.of(read_traces(run), clock))
        assert found.value is not None
        assert found.to_row() == json.loads((run / "summary.json").read_text())["speedup"]
    assert "timings not comparable" not in Path("sweep/summary.md").read_text()
