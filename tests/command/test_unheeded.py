"""An option that does nothing, as the command was called, is refused with what is meant."""

from pathlib import Path

import pytest

from tests.support.running import CommandLine

pytestmark = pytest.mark.usefixtures("empty_folder")

TEXT = ["data.path=zoo:held_out", "output=tree.json"]
TRAINING = ["data.path=zoo:train", "data.held_out_path=zoo:held_out", "output=trained"]


@pytest.mark.parametrize(
    ("command", "overrides", "meant"),
    [
        ("decode", ["hydra.sweep.dir=here"], "output=DIR"),
        ("compare", ["hydra.run.dir=here"], "output=DIR"),
        ("record", ["run=DIR", "max_new_tokens=4"], "comes from the run, run=DIR"),
        ("record", ["run=DIR", "proposer=ngram"], "comes from the run, run=DIR"),
        ("costs", ["output=costs.json", "tree.gamma=8"], 'proposers=["NAME OPTIONS"]'),
        ("costs", ["output=costs.json", "proposer=medusa"], 'proposers=["NAME OPTIONS"]'),
        ("costs", ["output=costs.json", "verification=block"], 'options=["verification=block"]'),
        ("costs", ["output=costs.json", "tracker=wandb"], "no run is written"),
        ("calibrate", [*TEXT, "max_children=3"], "positional=true"),
        ("calibrate", [*TEXT, "sampling.temperature=1"], "positional=true"),
        ("calibrate", [*TEXT, "proposer=medusa", "draft.path=x"], "proposer=draft_model"),
        (
            "calibrate",
            ["output=t.json", "recording=DIR", "data.limit=3"],
            "comes from the recording",
        ),
        ("train", [*TRAINING, "decode=['prompts.limit=2']"], "expected -m, too"),
        ("train", [*TRAINING, "distill.temperature=0.5"], "distill.path=FILE, too"),
        ("train", [*TRAINING, "tuning.method=full"], "joint=true"),
        ("train", [*TRAINING, "data.held_out_share=0.1"], "no data.held_out_path"),
        ("train", [*TRAINING, "evaluation.prompts_limit=3"], "evaluation.prompts; expected"),
        ("train", [*TRAINING, "train=lm", "loss=kl"], "heads, exits and drafts"),
        ("train", [*TRAINING, "train=lm", "verifier.path=x"], "heads, exits and drafts"),
        ("calibrate", [*TEXT, "data.held_out_share=0.1"], "nothing is held out"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_what_nothing_heeds_is_refused(
    cli: CommandLine, command: str, overrides: list[str], meant: str
) -> None:
    ended = cli(command, *overrides)
    (line,) = ended.err.splitlines()
    assert ended.status == 2
    assert line.startswith(f"error: {overrides[-1]}: ")
    assert meant in line
    assert not Path("trained").exists()


def test_what_is_told_to_be_off_says_nothing(cli: CommandLine) -> None:
    ended = cli("train", *TRAINING[:2], "max_steps=0", "distill.path=null", "decode=[]")
    assert "max_steps=0" in ended.err
