"""The tables beside a report hold the numbers of its arms, in every format the same."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from specdec.core.errors import UserError
from specdec.metrics import Tally, summarize
from specdec.metrics.speed import NO_CLOCK, TOO_CHEAP
from specdec.report.write import write_report
from specdec.results.flat import flat
from tests.support.fabricated import easy_traces, make_config, write_run
from tests.support.swept import write_replayed, write_trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three arms at two temperatures, one of which says `null` where the others have a number."""
    folder = tmp_path_factory.mktemp("runs")
    for temperature in (0.0, 0.7):
        for name, gamma in (("none", None), ("ngram", 4), ("draft_model", 4)):
            config = make_config(name, gamma, temperature=temperature)
            if name == "draft_model":
                config["proposer"]["temperature"] = None if temperature else 0.5
            depth = 0 if gamma is None else gamma
            traces = easy_traces(6, len(name), depth)
            write_run(folder / f"{name}-{temperature}", config, traces)
    write_report(folder)
    return folder


def test_flat_numbers_keep_their_intervals() -> None:
    tally = Tally.of(easy_traces(7, 0, depth=2))
    summary = summarize(tally)
    found = flat(summary)
    tau = summary["block_efficiency"]
    assert found["block_efficiency"] == tau["value"]
    assert found["block_efficiency_low"] == tau["low"]
    assert found["block_efficiency_n"] == 7
    depth = summary["acceptance_at_depth"]["2"]
    assert found["acceptance_at_depth_2"] == depth["value"]
    assert found["time_shares_verify"] == summary["time_shares"]["verify"]["value"]
    assert found["finish_reasons_length"] == 7
    assert "speedup" not in found, "it has no clock, and a reason is no number"
    assert "transport_bound" not in found, "what was not measured is left out, not nought"
    assert not any(isinstance(value, bool) for value in flat({"lossless": True, "n": 1}).values())


def test_all_formats_hold_the_same(folder: Path) -> None:
    text, binary = pd.read_csv(folder / "summary.csv"), pd.read_parquet(folder / "summary.parquet")
    assert list(text) == list(binary)
    assert len(text) == len(binary) == 6
    for name in text:
        if text[name].dtype.kind == "f" and binary[name].dtype.kind == "f":
            assert np.allclose(text[name], binary[name], equal_nan=True, rtol=1e-12), name
    assert set(text["proposer"]) == {"none", "ngram", "draft_model"}
    assert set(text["sampling.temperature"]) == {0.0, 0.7}


def test_numbers_are_those_of_the_run(folder: Path) -> None:
    table = pd.read_csv(folder / "summary.csv")
    row = table[(table["proposer"] == "ngram") & (table["sampling.temperature"] == 0.7)].iloc[0]
    summary = json.loads((folder / "ngram-0.7" / "summary.json").read_text())
    assert row["block_efficiency"] == pytest.approx(summary["block_efficiency"]["value"])
    assert row["acceptance_at_depth_2_high"] == pytest.approx(
        summary["acceptance_at_depth"]["2"]["high"]
    )
    assert row["num_steps"] == summary["num_steps"]
    assert row["seeds"] == 0


def test_markdown_can_be_pasted(folder: Path) -> None:
    text = (folder / "summary.md").read_text()
    assert "### temperature=0" in text
    rows = [line for line in text.splitlines() if line.startswith("| draft_model")]
    assert len(rows) == 2
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1, "a table has as many cells in each row"
    assert "* block efficiency: Emitted tokens" in text


def test_notes_say_what_is_not_compared(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        write_run(tmp_path / dtype, make_config("ngram", 4, dtype=dtype), easy_traces(4, 0))
    write_report(tmp_path)
    assert (
        "> not compared with each other: runs that differ in dtype: bfloat16, float32"
        in (tmp_path / "summary.md").read_text()
    )
    write_report(tmp_path, force=True)
    assert (
        "FORCED: arms are compared although they differ in dtype"
        in (tmp_path / "summary.md").read_text()
    )


def test_an_unknown_reference_names_the_arms(folder: Path) -> None:
    with pytest.raises(UserError, match=r"reference='medusa': expected one of draft_model.*ngram"):
        write_report(folder, "medusa")


def test_trainings_have_their_steps_and_tokens_and_a_name_to_refer_to(tmp_path: Path) -> None:
    write_report(write_trained(tmp_path), reference="medusa, tokens=291 k")
    table = pd.read_csv(tmp_path / "summary.csv")
    assert list(table["training.max_steps"]) == [400, 600]
    assert list(table["training.tokens"]) == [194_131, 291_200]
    assert table["reference"].dropna().tolist() == ["medusa, tokens=291 k"]


def test_pasted_tables_say_how_many_seeds_were_pooled(tmp_path: Path, folder: Path) -> None:
    write_report(write_trained(tmp_path, seeds=(0, 1)))
    head, _, *rows = [
        line for line in (tmp_path / "summary.md").read_text().splitlines() if line[:1] == "|"
    ]
    assert head.endswith("| prompts | seeds |")
    assert all(row.endswith("| 3 | 2 |") for row in rows)
    assert "seeds" not in (folder / "summary.md").read_text(), "each arm has but one"


@pytest.mark.parametrize(("plain_step", "reason"), [(None, NO_CLOCK), (2.5, TOO_CHEAP)])
def test_a_speedup_that_cannot_be_is_in_no_file(
    tmp_path: Path, plain_step: float | None, reason: str
) -> None:
    """Twice the speed that tau allows, or no clock at all: a reason in place of the number."""
    traces = easy_traces(9, 1, depth=2)
    write_run(tmp_path / "wrong", make_config("ngram", 2), traces, plain_step=plain_step)
    write_run(tmp_path / "right", make_config("ngram", 4), easy_traces(9, 2, depth=4))
    write_report(tmp_path)
    files = tmp_path / "summary.csv", tmp_path / "summary.parquet"
    for table in (pd.read_csv(files[0]), pd.read_parquet(files[1])):
        rows = table.set_index("tree.gamma")
        wrong = rows.loc[2].filter(regex="^(speedup|step_cost|cost_ratio)")
        assert wrong.pop("speedup_reason") == reason
        assert set(wrong.filter(regex="_n$")) == {0}
        numbers = [value for name, value in wrong.items() if not str(name).endswith("_n")]
        assert pd.isna(np.array(numbers, dtype=object)).all()
        assert set(rows["tie_in_speed"].isna()) == {True}
        assert rows["speedup_reason"].isna().to_dict() == {2: False, 4: True}
        assert rows["speedup"].to_dict()[4] > 0
    row = next(t for t in (tmp_path / "summary.md").read_text().splitlines() if "gamma=2" in t)
    assert row.endswith("| timings not comparable | 9 |")
    assert f"\n{reason}\n" in (tmp_path / "summary.md").read_text()
    page = (tmp_path / "report.html").read_text()
    assert page.count("timings not comparable") > 1


def test_too_few_prompts_are_said(tmp_path: Path, folder: Path) -> None:
    write_report(write_trained(tmp_path))
    few = "n = 3 prompts: too few to resolve differences"
    assert few in (tmp_path / "summary.md").read_text()
    assert "too few" not in (folder / "summary.md").read_text()


def test_replayed_runs_say_so_and_have_no_speed(tmp_path: Path) -> None:
    write_report(write_replayed(tmp_path))
    text = (tmp_path / "summary.md").read_text()
    note = "expected values, computed from the recording recordings/mine without decoding"
    assert text.startswith(f"> {note}\n")
    assert "speedup" not in text.partition("* Intervals")[0]
    write_run(tmp_path / "decoded", make_config("ngram", 4), easy_traces(6, 0))
    write_report(tmp_path)
    assert f"> 3 of 4 runs: {note}\n" in (tmp_path / "summary.md").read_text()
