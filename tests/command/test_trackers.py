"""Results reach a tracker, and no tracker ever fails a run."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nobody has ever logged in to wandb."""
    pytest.importorskip("wandb", reason="wandb is an optional extra")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin", None)


BLOCK, FILE_HEADER, HEADER = 32768, 7, struct.Struct("<IHB")  # checksum, length, type
WHOLE, LAST = 1, 4


def pieces(log: bytes) -> Iterator[bytes]:
    """Cut a log of LevelDB's format into records, which is what wandb writes offline."""
    place, record = FILE_HEADER, b""
    while place + HEADER.size <= len(log):
        if BLOCK - place % BLOCK < HEADER.size:  # the rest of a block is padding
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = HEADER.unpack_from(log, place)
        place += HEADER.size
        record += log[place : place + length]
        place += length
        if kind in (WHOLE, LAST):
            yield record
            record = b""


def records(folder: Path) -> list[Any]:
    """Read an offline run back, as `wandb sync` does."""
    internal: Any = import_module("wandb.proto.wandb_internal_pb2")

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    return [internal.Record.FromString(data) for data in pieces(file.read_bytes())]


@pytest.mark.usefixtures("no_account", "fresh_accelerator")
def test_an_offline_run_holds_what_the_run_directory_does(tiny: Tiny, cli: CommandLine) -> None:
    options = ["-m", "proposer=ngram", "tree.gamma=1,3"]
    ended = cli("decode", *tiny.options("my_sweep"), *options, "tracker=wandb")
    assert ended.status == 0, ended.err
    assert ended.out.count("upload with: wandb sync") == 2
    for run in sorted(path.parent for path in Path("my_sweep").glob("*/status.json")):
        found = records(run)
        (begun,) = (record.run for record in found if record.WhichOneof("record_type") == "run")
        assert (begun.project, begun.run_group, begun.job_type) == ("specdec", "my_sweep", "decode")
        assert begun.display_name == run.name
        assert "ngram" in begun.tags
        logged = "".join(str(record) for record in found)
        gamma = run.name[len("gamma=")]
        assert f'tree.gamma"\n    value_json: "{gamma}"' in logged
        assert "block_efficiency" in logged
        assert "prompts" in logged, "the table of prompts is missing"


@pytest.mark.usefixtures("no_account", "fresh_accelerator")
def test_a_tracker_that_breaks_fails_no_run(
    tiny: Tiny, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise ConnectionError("the service is down")

    monkeypatch.setattr("wandb.init", broken)
    ended = cli("decode", *tiny.options("run"), "proposer=ngram", "tracker=wandb")
    assert ended.status == 0, ended.err
    assert "tracker=wandb: ConnectionError: the service is down; the results are in" in ended.out
    assert '"complete"' in Path("run/status.json").read_text()


def test_an_unknown_tracker_is_refused_before_a_model_is_loaded(
    tiny: Tiny, cli: CommandLine
) -> None:
    ended = cli("decode", *tiny.options("run"), "verifier.path=missing", "tracker=csv")
    assert ended.status == 2
    assert ended.err.startswith("error: tracker='csv': expected one of jsonl, wandb")
