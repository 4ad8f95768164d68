"""What the checkpoint and the command line ask of the distribution reaches every command."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf

from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")

OVERRIDES = (
    *(
        "sampling.temperature=1",
        "sampling.repetition_penalty=1.5",
        "sampling.no_repeat_ngram_size=3",
    ),
    *("min_new_tokens=8", "max_new_tokens=40", "proposer=draft_model", "tree.gamma=3"),
)


def test_check_record_and_replay_know_the_processed_distribution(
    cli: CommandLine, tiny: Tiny
) -> None:
    """A draft that is the verifier is always right where both are processed alike."""
    same = f"draft.path={tiny.verifier}"
    ended = cli("decode", *tiny.options("run", *OVERRIDES, same))
    assert ended.status == 0, ended.err
    assert "repetition_penalty=1.5, no_repeat_ngram_size=3, min_new_tokens=8" in ended.out
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["acceptance_rate"]["value"] == 1
    assert cli("record", "run=run", "output=recording", "top_k=4").status == 0
    manifest = json.loads(Path("recording/manifest.json").read_text())
    assert manifest["sampling"]["repetition_penalty"] == 1.5
    options = f"options=['{same}']"
    grid = ("grid.proposer=[draft_model]", "grid.verification=[rejection,match]", "grid.gamma=[3]")
    ended = cli("replay", "recording=recording", options, *grid, "output=replayed")
    assert ended.status == 0, ended.err
    table: Any = pd.read_csv("replayed/summary.csv").set_index("verification")
    found = table["block_efficiency"].to_dict()
    assert found["rejection"] == pytest.approx(summary["block_efficiency"]["value"], abs=1e-6)
    assert found["match"] < found["rejection"]


@pytest.mark.thorough
def test_texts_that_were_processed_are_checked_as_such(cli: CommandLine, tiny: Tiny) -> None:
    Path("many.jsonl").write_text("\n".join(json.dumps({"prompt": f"x{n}"}) for n in range(40)))
    overrides = (
        *OVERRIDES,
        "sampling.sequence_bias=[[[5],15]]",
        "prompts.path=many.jsonl",
        "batch=8",
    )
    assert cli("decode", *tiny.options("run", *overrides)).status == 0
    ended = cli("check", "run=run")
    assert ended.status == 0, ended.err + ended.out
    config = OmegaConf.load("run/config.yaml")
    config.sampling.sequence_bias = None
    OmegaConf.save(config, "run/config.yaml")
    assert cli("check", "run=run").status == 1, "as if nothing had been processed"


def test_ends_can_be_ignored_and_escapes_are_read(cli: CommandLine, tiny: Tiny) -> None:
    ended = cli("decode", *tiny.options("run", "ignore_eos=true", "max_new_tokens=30"))
    assert ended.status == 0, ended.err
    for line in Path("run/traces.jsonl").read_text().splitlines():
        assert json.loads(line)["finish_reason"] == "length"
    ended = cli("decode", *tiny.options("other", 'stop_strings=["\\n","e"]', "log_probs=true"))
    assert ended.status == 0, ended.err
    for line in Path("other/traces.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert sum(len(step["log_probs"]) for step in row["steps"]) == len(row["output_ids"])


def test_processors_of_ones_own_are_configured_and_known(
    cli: CommandLine, tiny: Tiny, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(empty_folder))
    Path("mylab.py").write_text(
        "class Never:\n"
        "    def __init__(self, token):\n"
        "        self.token = token\n"
        "    def __call__(self, input_ids, scores):\n"
        "        scores[:, self.token] = -1e9\n"
        "        return scores\n"
    )
    for token in (3, 5):
        own = f"sampling.processors=[{{_target_: mylab.Never, token: {token}}}]"
        ended = cli("decode", *tiny.options(f"run{token}", "proposer=ngram", own))
        assert ended.status == 0, ended.err
        for line in Path(f"run{token}/traces.jsonl").read_text().splitlines():
            assert token not in json.loads(line)["output_ids"]
    known = [json.loads(Path(f"run{t}/status.json").read_text())["identity"] for t in (3, 5)]
    assert known[0] != known[1]
    provenance = json.loads(Path("run3/provenance.json").read_text())
    assert provenance["code"].keys() == {"sampling.processors.0"}
    ended = cli("decode", *tiny.options("run", "sampling.processors=[{_target_: mylab.Nobody}]"))
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "sampling.processors[0]._target_='mylab.Nobody': cannot be imported" in ended.err
