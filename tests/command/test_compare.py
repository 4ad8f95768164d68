"""compare and decode: what they print, what a run directory holds, and what Ctrl-C leaves."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from specdec.core.trace import PlainSteps, Trace
from specdec.metrics import Tally, cost_ratio, speedup, summarize
from specdec.results.run_dir import read_clock, read_traces
from tests.support.interrupting import stop_after
from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")

ARMS = 'arms=["proposer=none", "proposer=ngram", "proposer=draft_model tree.gamma=2"]'
TWO_ARMS = 'arms=["proposer=none", "proposer=ngram"]'
NAMES = ("none", "ngram", "draft_model,tree.gamma=2")
FILES = {
    *(".lock", "config.yaml", "provenance.json", "status.json", "summary.json", "tally.jsonl"),
    *("clock.jsonl", "tokens.jsonl", "traces.jsonl"),
}
REPORT = {"plots", "report.html", "summary.csv", "summary.md", "summary.parquet"}


@dataclass(frozen=True)
class Comparison:
    """A finished comparison, shared by the tests that only read it."""

    folder: Path
    out: str


@pytest.fixture(scope="module")
def comparison(
    cli: CommandLine, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> Comparison:
    folder = tmp_path_factory.mktemp("comparison")
    ended = cli("compare", *tiny.options(folder, ARMS))
    assert ended.status == 0, ended.err
    return Comparison(folder, ended.out)


def read_json(path: Path) -> Any:
    """Read strict JSON: Python would write NaN and Infinity, which nothing else can read."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{path} holds {constant}, which is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def outputs(run_dir: Path) -> dict[str, tuple[int, ...]]:
    return {trace.prompt_id: trace.output_ids for trace in read_traces(run_dir)}


def state(run_dir: Path) -> str:
    return read_json(run_dir / "status.json")["state"]


# --- What a run directory holds ---


def test_every_arm_has_a_whole_run_directory(comparison: Comparison) -> None:
    assert {path.name for path in comparison.folder.iterdir()} == {*NAMES, *REPORT}
    for name in NAMES:
        found = {path.name for path in (comparison.folder / name).iterdir()}
        assert found == FILES, f"{name}: temporary files left, or results missing"
        status = read_json(comparison.folder / name / "status.json")
        assert (status["state"], status["error"]) == ("complete", None)


def test_the_configuration_is_resolved_and_complete(comparison: Comparison, tiny: Tiny) -> None:
    path = comparison.folder / NAMES[2] / "config.yaml"
    assert "${" not in path.read_text(), "an interpolation means nothing outside of Hydra"
    config = OmegaConf.load(path)
    assert not OmegaConf.missing_keys(config)
    assert config == OmegaConf.create(yaml.safe_load(path.read_text()))
    assert config.proposer._target_.endswith("DraftModel"), "each arm has its own overrides"
    assert config.proposer.tree.gamma == config.tree.gamma == 2
    assert config.proposer.model.path == str(tiny.draft)
    assert config.max_new_tokens == 12
    assert "hydra" not in config


def test_a_saved_configuration_runs_again(comparison: Comparison, tiny: Tiny) -> None:
    """Whoever has a run directory and the models can repeat the run without the command line."""
    arm = import_module("specdec.lab.arm")
    run_dir = comparison.folder / NAMES[2]
    config = OmegaConf.load(run_dir / "config.yaml")
    spec = import_module("specdec.command.options").arm_spec(config)
    repeated = arm.build_arm(spec, spec.verifier.build())
    decoded = repeated.decode(spec.prompts.load())
    traces = {trace.prompt_id: trace.output_ids for trace in decoded}
    assert traces == outputs(run_dir)


@pytest.mark.parametrize("name", NAMES)
def test_traces_hold_every_prompt_once(comparison: Comparison, name: str) -> None:
    rows = [json.loads(line) for line in (comparison.folder / name / "traces.jsonl").open()]
    assert [row["prompt_id"] for row in rows] == ["add", "print", "text"], "a warm-up was recorded?"
    assert [row["category"] for row in rows] == ["code", "code", "text"]
    for row in rows:
        assert {"output_ids", "finish_reason", "steps"} <= row.keys()
        emitted = sum(step["emitted"] for step in row["steps"])
        assert emitted == len(row["output_ids"]) <= 12, "steps and output ids disagree"


@pytest.mark.parametrize("name", NAMES)
def test_the_summary_follows_from_the_traces_alone(comparison: Comparison, name: str) -> None:
    """Record raw, derive late: no number may need what only the process knew."""
    run_dir = comparison.folder / name
    assert_recomputable(run_dir)


def assert_recomputable(run_dir: Path, traces: Sequence[Trace] | None = None) -> None:
    summary = read_json(run_dir / "summary.json")
    traces = read_traces(run_dir) if traces is None else traces
    again = summarize(Tally.of(traces, read_clock(run_dir)))
    differing = {key: (summary[key], again[key]) for key in again if summary[key] != again[key]}
    assert not differing, f"saved and recomputed from traces.jsonl: {differing}"


@pytest.mark.parametrize("name", NAMES)
def test_comparing_numbers_follow_from_the_traces_of_two_arms(
    comparison: Comparison, name: str
) -> None:
    summary = read_json(comparison.folder / name / "summary.json")
    traces, baseline = (read_traces(comparison.folder / arm) for arm in (name, "none"))
    tally = Tally.of(traces, [PlainSteps.of(trace) for trace in baseline])
    assert summary["speedup"] == speedup(tally).to_row()
    assert summary["cost_ratio"] == cost_ratio(tally).to_row()
    assert summary["lossless"] is True
    assert summary["arm"] == name
    assert summary["rule"] == "rejection"


def test_provenance_says_where_the_numbers_come_from(comparison: Comparison) -> None:
    provenance = read_json(comparison.folder / "ngram" / "provenance.json")
    assert provenance["argv"][0].endswith("compare")
    assert ARMS in provenance["argv"]
    assert provenance["dtype"] == "float32"
    assert provenance["attention"] == "sdpa"
    assert "cpu" in provenance["device"]
    assert {"python", "torch", "transformers", "specdec-lab"} <= provenance["versions"].keys()
    assert all(provenance["versions"].values()), "a version is unknown"
    assert provenance["git"] is None or len(provenance["git"]["commit"]) == 40


# --- What is measured ---


def test_all_arms_emit_the_text_of_the_baseline(comparison: Comparison) -> None:
    texts = [outputs(comparison.folder / name) for name in NAMES]
    assert texts[1] == texts[2] == texts[0], "temperature 0 is lossless token for token"
    summary = read_json(comparison.folder / "ngram" / "summary.json")
    assert summary["same_text"] == {"equal": 3, "of": 3}


def test_the_arms_did_what_they_are_called(comparison: Comparison) -> None:
    plain, ngram, drafted = (read_traces(comparison.folder / name) for name in NAMES)
    assert {step.drafted for trace in plain for step in trace.steps} == {0}
    assert any(step.drafted for trace in ngram for step in trace.steps), "nothing was ever copied"
    steps = [step for trace in drafted for step in trace.steps]
    assert max(step.drafted for step in steps) == 2, "tree.gamma=2 was ignored"
    num_accepted = sum(step.accepted for step in steps)
    assert 0 < num_accepted < sum(step.drafted for step in steps), "the tiny draft proves nothing"


def test_the_table_shows_every_arm_and_says_what_its_numbers_mean(comparison: Comparison) -> None:
    for name in NAMES:
        assert name in comparison.out, f"the table lacks the arm {name}:\n{comparison.out}"
        assert f"run directory of {name}: " in comparison.out
        tau = read_json(comparison.folder / name / "summary.json")["block_efficiency"]["value"]
        assert f"{tau:.2f}" in comparison.out
    assert "3 prompts" in comparison.out
    for name in ("block_efficiency", "acceptance_rate", "acceptance_at_depth", "speedup"):
        assert f"{name}: " in comparison.out, f"{name} is shown and not defined"


def test_arms_are_tested_against_the_best_and_reported(comparison: Comparison) -> None:
    """Three prompts resolve nothing: differences stand alone, and nothing is marked."""
    summaries = {name: read_json(comparison.folder / name / "summary.json") for name in NAMES}
    taus = {name: each["block_efficiency"]["value"] for name, each in summaries.items()}
    best = max(taus, key=lambda name: taus[name])
    assert "difference" not in summaries[best]
    for name in set(NAMES) - {best}:
        difference = summaries[name]["difference"]
        assert difference["value"] == pytest.approx(taus[name] - taus[best])
        assert (difference["low"], difference["n"]) == (None, 3)
        assert summaries[name]["reference"] == best
        assert summaries[name]["tie"] is summaries[name]["p_value"] is None
    assert f"reference arm: {best}" in comparison.out
    assert "too few to resolve differences" in comparison.out
    assert f"report: {comparison.folder / 'report.html'}" in comparison.out
    table = pd.read_csv(comparison.folder / "summary.csv")
    assert sorted(table["block_efficiency"]) == pytest.approx(sorted(taus.values()))
    assert sorted(table["speedup"].dropna()) == pytest.approx(
        sorted(s["speedup"]["value"] for s in summaries.values() if s["speedup"]["value"])
    )


@pytest.mark.thorough
def test_a_reference_is_the_report_too(cli: CommandLine, tiny: Tiny) -> None:
    options = tiny.options("run", TWO_ARMS, "reference=none", "max_new_tokens=4")
    assert cli("compare", *options, plots=True).status == 0
    assert list(Path("run/plots").glob("*.svg"))
    table = pd.read_csv("run/summary.csv").set_index("arm")
    assert table["reference"].dropna().to_dict() == {"ngram, rejection": "none"}


def test_arms_take_turns_at_every_prompt(
    cli: CommandLine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a machine that slows down makes the later arm look slower."""
    calls = record_decoding(monkeypatch)
    assert cli("compare", *tiny.options("run", TWO_ARMS, "max_new_tokens=2")).status == 0
    assert [prompts for _, prompts in calls] == [
        ["add"], ["add"], ["print"], ["print"], ["text"], ["text"],
    ]  # fmt: skip
    order = [name for name, _ in calls]
    assert all(set(order[i : i + 2]) == {"none", "ngram"} for i in (0, 2, 4))
    assert len(set(order[::2])) == 2, "the same arm always goes first"


def record_decoding(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Note which arm decodes which prompts, in order."""
    arm = import_module("specdec.lab.arm").Arm
    decode, calls = arm.decode, []

    def recorded(
        self: Any, prompts: Sequence[Any], looked_at: Sequence[str] = ()
    ) -> Iterator[Trace]:
        calls.append((self.name, [prompt.prompt_id for prompt in prompts]))
        return decode(self, prompts)

    monkeypatch.setattr(arm, "decode", recorded)
    return calls


def test_sampling_at_temperature_one(cli: CommandLine, tiny: Tiny) -> None:
    ended = cli("compare", *tiny.options("run", ARMS, "sampling.temperature=1"))
    assert ended.status == 0, ended.err
    summary = read_json(Path("run") / NAMES[2] / "summary.json")
    assert summary["lossless"] is True
    assert summary["same_text"] is None, "two samples need not be equal, so nothing is claimed"
    texts = [outputs(Path("run") / name) for name in NAMES]
    assert texts[0] != texts[2], "temperature 1 was ignored: a sample equals the greedy text"


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_batch_emits_what_single_requests_emit(
    cli: CommandLine, tiny: Tiny, temperature: int
) -> None:
    options = ["proposer=draft_model", f"sampling.temperature={temperature}"]
    for batch in (1, 3):
        ended = cli("decode", *tiny.options(f"batch{batch}", *options, f"batch={batch}"))
        assert ended.status == 0, ended.err
    single, batched = outputs(Path("batch1")), outputs(Path("batch3"))
    assert batched == single, "requests in flight together leak into each other"


def test_a_batched_comparison_is_summarized_from_its_traces(cli: CommandLine, tiny: Tiny) -> None:
    """In a batch, prompts finish in another order than they began, and in another per arm."""
    rows = [{"id": str(number), "prompt": f"add({number}, 1)"} for number in range(8)]
    Path("eight.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    arms = 'arms=["proposer=none", "proposer=draft_model"]'
    options = tiny.options("run", arms, "batch=8", "prompts.path=eight.jsonl")
    assert cli("compare", *options).status == 0
    for name in ("none", "draft_model"):
        run_dir = Path("run") / name
        assert_recomputable(run_dir)


def test_the_seed_decides_about_samples(cli: CommandLine, tiny: Tiny) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        cli("decode", *tiny.options(name, "sampling.temperature=1", f"seed={seed}"))
    first, again, other = (outputs(Path(name)) for name in ("first", "again", "other"))
    assert first == again
    assert first != other


# --- Forms of prompts and proposers that need more than one part ---


def test_later_turns_are_asked_after_the_models_own_answers(cli: CommandLine, tiny: Tiny) -> None:
    turns = {"chat": ["first", "second"], "short": ["print("]}
    rows = [{"question_id": name, "turns": asked_turns} for name, asked_turns in turns.items()]
    Path("turns.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    ended = cli("compare", *tiny.options("run", TWO_ARMS, "batch=2", "prompts.path=turns.jsonl"))
    assert ended.status == 0, ended.err
    tokenizer = AutoTokenizer.from_pretrained(tiny.verifier)
    for name in ("none", "ngram"):
        traces = {(t.prompt_id, t.turn): t for t in read_traces(Path("run") / name)}
        assert traces.keys() == {("chat", 0), ("chat", 1), ("short", 0)}
        text = f"first\n\n{traces['chat', 0].output_text}\n\nsecond"
        expected = len(tokenizer(text)["input_ids"])
        assert traces["chat", 1].num_prompt_tokens == expected, "the answer is not in turn 2"
        summary = read_json(Path("run") / name / "summary.json")
        assert (summary["num_prompts"], summary["num_turns"]) == (2, 3)


def test_a_turn_that_outgrows_the_context_ends_at_once(cli: CommandLine, tiny: Tiny) -> None:
    """Known only in the middle of the run: it costs that turn alone, and is counted and named."""
    rows = [
        {"id": "fine", "prompt": "def"},
        {"id": "grows", "turns": ["return " * 120, "return " * 110, "return " * 10]},
    ]
    Path("turns.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = tiny.options("run", "prompts.path=turns.jsonl")
    ended = cli("decode", *options)
    assert ended.status == 0, ended.err
    assert "1 turn without an answer, for want of room in the context: grows#2" in ended.out
    texts = [(t.prompt_id, t.turn, bool(t.output_ids)) for t in read_traces(Path("run"))]
    assert texts == [("fine", 0, True), ("grows", 0, True), ("grows", 1, True), ("grows", 2, False)]
    last = read_traces(Path("run"))[-1]
    assert (last.finish_reason, last.steps) == ("context", ())
    assert last.num_prompt_tokens >= 256
    summary = read_json(Path("run/summary.json"))
    assert (summary["num_prompts"], summary["num_turns"], summary["num_unanswered"]) == (2, 4, 1)
    assert "complete" in cli("decode", *options).out
    assert cli("record", "run=run", "output=recording").status == 0
    sampled = [*options, "output=sampled", "sampling.temperature=1"]
    assert "for want of room in the context: grows#1, grows#2" in cli("decode", *sampled).out
    runs = import_module("specdec.lab.rendered_runs")
    verifier = import_module("specdec.lm.load").load(str(tiny.verifier))
    spec = runs.read_spec(Path("sampled"))
    texts = runs.texts_of_run(read_traces(Path("sampled")), spec, verifier)
    assert [text.key for text in texts] == [("fine", 0, 0), ("grows", 0, 0)]
    arms = 'arms=["proposer=none","proposer=ngram"]'
    ended = cli("compare", *tiny.options("both", "prompts.path=turns.jsonl", arms, "batch=2"))
    assert ended.status == 0, ended.err
    assert "1 turn without an answer, for want of room in the context: grows#2" in ended.out
    assert read_json(Path("both/ngram/summary.json"))["same_text"] == {"equal": 4, "of": 4}


def test_a_recorded_run_is_proposed_again(cli: CommandLine, tiny: Tiny) -> None:
    assert cli("decode", *tiny.options("first")).status == 0
    options = ["proposer=recorded", "proposer.path=first", "tree.gamma=3"]
    ended = cli("decode", *tiny.options("again", *options))
    assert ended.status == 0, ended.err
    assert outputs(Path("again")) == outputs(Path("first"))
    summary = read_json(Path("again/summary.json"))
    assert summary["acceptance_rate"]["value"] == 1.0, "its own greedy text was rejected"
    assert summary["num_steps"] < read_json(Path("first/summary.json"))["num_steps"]


@pytest.mark.thorough
def test_a_sampled_recording_is_not_judged_by_its_own_noise(cli: CommandLine, tiny: Tiny) -> None:
    sampled = "sampling.temperature=1"
    assert cli("decode", *tiny.options("first", sampled, "seed=3")).status == 0
    options = ["proposer=recorded", "proposer.path=first", sampled]
    ended = cli("decode", *tiny.options("again", *options, "seed=3"))
    assert ended.status == 2
    assert "Traceback" not in ended.err
    assert "seed=3: the texts in 'first' were drawn with this seed" in ended.err
    assert cli("decode", *tiny.options("again", *options, "seed=4")).status == 0


def test_a_prompt_that_was_not_recorded_is_named(cli: CommandLine, tiny: Tiny) -> None:
    assert cli("decode", *tiny.options("first", "prompts.limit=2")).status == 0
    options = ["proposer=recorded", "proposer.path=first"]
    ended = cli("decode", *tiny.options("again", *options))
    assert ended.status == 2
    assert "Traceback" not in ended.err
    assert "nothing recorded for prompt text" in ended.err
    assert "text" in ended.err
    assert not Path("again/status.json").exists() or state(Path("again")) == "failed"


def test_decode_writes_its_run_into_the_folder_itself(cli: CommandLine, tiny: Tiny) -> None:
    ended = cli("decode", *tiny.options("run", "proposer=ngram"))
    assert ended.status == 0, ended.err
    assert {path.name for path in Path("run").iterdir()} == FILES
    assert state(Path("run")) == "complete"
    assert "ngram" in ended.out
    assert "run directory: " in ended.out
    assert "block_efficiency: " in ended.out
    assert_recomputable(Path("run"))


# --- Interrupts and failures ---


def test_ctrl_c_leaves_valid_partial_results_and_says_so(
    cli: CommandLine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 3)
    ended = cli("compare", *tiny.options("run", TWO_ARMS))
    assert ended.status == 130
    assert "Traceback" not in ended.err
    assert "interrupted after 1 of 3 prompts" in ended.out + ended.err
    assert "speedup" in ended.out, "the table of what was done is missing"
    counts = {}
    for name in ("none", "ngram"):
        run_dir = Path("run") / name
        assert state(run_dir) == "interrupted"
        counts[name] = len(read_traces(run_dir))
        summary = read_json(run_dir / "summary.json")
        assert summary["num_prompts"] == 1, "arms must be compared on the prompts that both have"
        assert_recomputable(run_dir, read_traces(run_dir)[:1])
    table = pd.read_csv("run/summary.csv").set_index("arm")
    assert set(table["num_prompts"]) == {1}
    assert set(table.index) == {"none", "ngram, rejection"}
    assert "Cut short" in Path("run/report.html").read_text()
    again = cli("report", "run=run")
    assert "cut short, and told of the prompts that all arms finished: ngram, none" in again.out
    assert sorted(counts.values()) == [1, 2], "a finished text was lost"


def test_ctrl_c_before_the_first_pair_claims_nothing(
    cli: CommandLine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 1)
    ended = cli("compare", *tiny.options("run", TWO_ARMS))
    assert ended.status == 130
    assert "interrupted after 0 of 3 prompts" in ended.out + ended.err
    assert state(Path("run/none")) == state(Path("run/ngram")) == "interrupted"
    assert len(read_traces(Path("run/none"))) == 1
    assert not Path("run/report.html").exists()


def test_ctrl_c_in_decode_leaves_valid_partial_results_and_says_so(
    cli: CommandLine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 2)
    ended = cli("decode", *tiny.options("run"))
    assert ended.status == 130
    assert "Traceback" not in ended.err
    assert state(Path("run")) == "interrupted"
    assert len(read_traces(Path("run"))) == 2
    assert_recomputable(Path("run"))
    said = ended.out + ended.err
    assert "interrupted after 2 of 3" in said, f"decode does not say what it left:\n{said}"


@pytest.mark.parametrize("entry_point", ["compare", "decode"])
def test_a_crash_leaves_a_traceback_in_the_status(
    cli: CommandLine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, entry_point: str
) -> None:
    stop_after(monkeypatch, 2, RuntimeError("boom"))
    more = [TWO_ARMS] if entry_point == "compare" else []
    with pytest.raises(RuntimeError, match="boom"):
        cli(entry_point, *tiny.options("run", *more))
    run_dirs = [Path("run/none"), Path("run/ngram")] if more else [Path("run")]
    assert not Path("run/report.html").exists()
    for run_dir in run_dirs:
        status = read_json(run_dir / "status.json")
        assert status["state"] == "failed", "a run that crashed must not look complete"
        assert "Traceback" in status["error"]
        assert "boom" in status["error"]
    assert sum(len(read_traces(run_dir)) for run_dir in run_dirs) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("boom")], ids=repr)
def test_no_number_of_an_earlier_run_is_left_in_its_folder(
    cli: CommandLine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Stale numbers beside fresh traces would be taken for theirs."""
    assert cli("compare", *tiny.options("run", TWO_ARMS)).status == 0
    stop_after(monkeypatch, 0, error)
    with suppress(RuntimeError):
        cli("compare", *tiny.options("run", TWO_ARMS, "prompts.limit=1", "resume=false"))
    for name in ("none", "ngram"):
        run_dir = Path("run") / name
        assert state(run_dir) != "complete"
        assert not (run_dir / "summary.json").exists(), "the summary of another run is still here"


def test_a_complete_comparison_is_not_overwritten(cli: CommandLine, tiny: Tiny) -> None:
    assert cli("compare", *tiny.options("run", TWO_ARMS)).status == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*.json*")}
    for options in ([], ["prompts.limit=1"]):  # the same again, and another
        ended = cli("compare", *tiny.options("run", TWO_ARMS, *options))
        assert ended.status == 2
        assert "resume=false" in ended.err
    assert {path: path.read_bytes() for path in Path("run").rglob("*.json*")} == before


def test_a_sweep_writes_one_run_each(cli: CommandLine, tiny: Tiny) -> None:
    sweep = ["tree.gamma=1,2", "proposer=ngram", "max_new_tokens=4"]
    ended = cli("decode", "-m", *tiny.options("sweep", *sweep))
    assert ended.status == 0, ended.err
    configs = [OmegaConf.load(path) for path in sorted(Path("sweep").rglob("config.yaml"))]
    assert [config.tree.gamma for config in configs] == [1, 2]
    assert [state(path.parent) for path in Path("sweep").rglob("status.json")] == ["complete"] * 2


def test_ctrl_c_ends_a_whole_sweep(
    cli: CommandLine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 1)
    sweep = ["tree.gamma=1,2,3", "proposer=ngram", "max_new_tokens=4"]
    ended = cli("decode", "-m", *tiny.options("sweep", *sweep))
    assert ended.status == 130
    states = [state(path.parent) for path in Path("sweep").rglob("status.json")]
    assert states == ["interrupted"], "Ctrl-C only skipped one job; the next ones went on"


@pytest.mark.thorough
def test_a_real_ctrl_c(tiny: Tiny) -> None:
    """A signal, not a mock: Hydra, tqdm and torch are all in between."""
    rows = [{"id": str(number), "prompt": "def add(first"} for number in range(2000)]
    Path("many.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = tiny.options("run", TWO_ARMS, "prompts.path=many.jsonl", "max_new_tokens=40")
    process = subprocess.Popen(
        [sys.executable, "-m", "specdec", "compare", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that started these tests in the background has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for_lines(Path("run/ngram/traces.jsonl"), 3, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err, err
    assert "interrupted after" in out
    for name in ("none", "ngram"):
        assert state(Path("run") / name) == "interrupted"
        assert len(read_traces(Path("run") / name)) >= 3
        assert read_json(Path("run") / name / "summary.json")["num_prompts"] >= 3


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until a file that a process writes has so many lines."""
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_text().count("\n") < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"{path} does not grow"
        time.sleep(0.05)
