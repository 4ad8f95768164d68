"""Proposers that look up, and hybrids, on the command line: built, decoded, replayed, refused."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from specdec.core.errors import UserError
from specdec.results.run_dir import read_traces
from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")
SCRIPT = Path(__file__).parents[2] / "scripts" / "build_datastore.py"
DRAFTED = '["suffix proposer.min_matched=2",draft_model]'


def script() -> ModuleType:
    found = spec_from_file_location("build_datastore", SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = module_from_spec(found)
    found.loader.exec_module(module)
    return module


def texts(run: str) -> dict[str, tuple[int, ...]]:
    return {trace.prompt_id: trace.output_ids for trace in read_traces(Path(run))}


def build(tiny: Tiny, *more: str) -> None:
    rows = [{"text": "def add(a, b):\n    return a + b\n"}, {"text": "import os\n" * 9}]
    Path("corpus.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    verifier = f"verifier.path={tiny.verifier}"
    script().main([verifier, "data.path=corpus.jsonl", "output=store", *more])


def test_all_of_them_write_the_verifiers_own_text(tiny: Tiny, cli: CommandLine) -> None:
    build(tiny)
    arms = {
        "none": ["proposer=none"],
        "suffix": ["proposer=suffix", "proposer.num_nodes=5"],
        "corpus": ["proposer=suffix", "proposer.corpus_path=store"],
        "retrieval": ["proposer=retrieval", "proposer.path=store", "proposer.min_matched=1"],
        "pool": ["proposer=pool"],
        "hybrid": ["proposer=hybrid", f"proposer.parts={DRAFTED}", "batch=2"],
        "merged": [
            *("proposer=hybrid", "proposer.mode=merge", "tree=sparse", "tree.paths=[[0],[0,0]]"),
            'proposer.parts=["suffix proposer.gamma=3",draft_model]',
        ],
    }
    for name, options in arms.items():
        ended = cli("decode", *tiny.options(name, "sampling.temperature=0", *options))
        assert ended.status == 0, ended.err
        assert texts(name) == texts("none"), name
    config = Path("hybrid/config.yaml").read_text(encoding="utf-8")
    assert "min_matched: 2" in config, "the run keeps what its parts are"


def test_a_datastore_is_known_by_its_content(tiny: Tiny, cli: CommandLine) -> None:
    build(tiny)
    options = ["proposer=retrieval", "proposer.path=store"]
    assert cli("decode", *tiny.options("run", *options)).status == 0
    again = cli("decode", *tiny.options("run", *options))
    assert again.status == 0, again.err
    Path("corpus.jsonl").write_text('{"text": "another text\\n"}\n', encoding="utf-8")
    script().main(
        [f"verifier.path={tiny.verifier}", "data.path=corpus.jsonl", "output=store", "shard=4"]
    )
    other = cli("decode", *tiny.options("run", *options))
    assert other.status == 2
    assert "run" in other.err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["proposer=retrieval"], "proposer.path=None: expected a datastore"),
        (["proposer=suffix", "proposer.corpus_path=no"], "proposer.corpus_path='no': no datastore"),
        (["proposer=suffix", "tree=sparse"], "tree=sparse: proposer=suffix copies one text"),
        (
            ["proposer=hybrid", "proposer.parts=[suffix]"],
            "proposer.parts=['suffix']: expected two proposers or more",
        ),
        (["proposer=hybrid", "proposer.parts=suffix"], "proposer.parts='suffix': expected a list"),
        (["proposer=hybrid", "proposer.parts=[suffix,nobody]"], "nobody"),
        (["proposer=hybrid", 'proposer.parts=[suffix,"ngram tree.gamma=3"]'], "with options of"),
        (
            ["proposer=hybrid", "proposer.parts=[suffix,cascade]"],
            "proposer.parts.1: has a proposer",
        ),
        (["proposer=hybrid", "proposer.mode=both"], "proposer.mode='both': expected switch or"),
        (["proposer=hybrid", "proposer.mode=merge"], "single candidates keep their distribution"),
        (["proposer=hybrid", "verification=block"], "cannot decide on deterministic candidates"),
        (["proposer=hybrid", "proposer.costs=[1]"], "proposer.costs=[1]: expected a number for"),
        (["proposer=hybrid", "proposer.parts=[suffix,ngram]", "tree=sparse"], "which has no gamma"),
        (["proposer=hybrid", 'proposer.parts=[none,"suffix proposer.gamma=0"]'], "gamma=0"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    tiny: Tiny, cli: CommandLine, options: list[str], complaint: str
) -> None:
    ended = cli("decode", *tiny.options("run", *options))
    assert ended.status == 2, ended.out
    assert complaint in ended.err
    assert len(ended.err.strip().splitlines()) == 1


def test_the_script_refuses_what_it_does_not_know(tiny: Tiny) -> None:
    for options, complaint in (
        ([], "data.path=None"),
        (["data.path=a.txt"], "output=None"),
        (["data.path=a.txt", "output=store"], "no such file"),
        (["data.path=a.txt", "output=store", "blok=3"], "blok"),
    ):
        with pytest.raises(UserError, match=complaint):
            script().main([f"verifier.path={tiny.verifier}", *options])


def test_what_the_text_decides_on_is_replayed(tiny: Tiny, cli: CommandLine) -> None:
    """As often as it is decoded; a hybrid that draws is replayed for `match` alone."""
    build(tiny)
    greedy = "sampling.temperature=0"
    assert cli("record", *tiny.options("recording", greedy)).status == 0
    arms = [
        "proposer=suffix",
        "proposer=retrieval proposer.path=store",
        "proposer=pool",
        "proposer=hybrid proposer.parts=[suffix,pool]",
    ]
    listed = ",".join(f'"{arm}"' for arm in arms)
    none = ["grid.proposer=[]", "output=replayed"]
    ended = cli("replay", "recording=recording", *none, f"arms=[{listed}]")
    assert ended.status == 0, ended.err
    drawn = [
        "grid.proposer=[]",
        "output=drawn",
        f'arms=["proposer=hybrid draft.path={tiny.draft}"]',
    ]
    refused = cli("replay", "recording=recording", *drawn)
    assert refused.status == 2
    assert "single candidates of this proposer cannot be replayed" in refused.err
