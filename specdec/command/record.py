"""Record texts to replay: `python experiments/record.py sampling.temperature=1`."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from specdec.command.decode import decode_into
from specdec.command.entry import Entry
from specdec.core.errors import UserError, require, require_int
from specdec.core.jsonl import write_text
from specdec.lab.arm import check_options, sampling_of
from specdec.lab.build import build
from specdec.lab.inputs import require_inputs
from specdec.lab.rendered_runs import read_config, require_unchanged, texts_of
from specdec.lm.fingerprint import fingerprint
from specdec.recording.folder import RecordingWriter, drop_damaged
from specdec.recording.scoring import score
from specdec.report.collect import read_run
from specdec.results.progress import Progress
from specdec.results.run_dir import read_traces, state_of
from specdec.results.session import COMPLETE


def task(config: DictConfig) -> None:
    """Decode the texts, unless a run has them, and write down how likely their tokens were."""
    require_int("top_k", config.top_k, 1)
    folder = Path(HydraConfig.get().runtime.output_dir)
    if config.run is not None:
        require(isinstance(config.run, str), "run", config.run, "a run directory")
        record(Path(config.run), folder, config)
        return
    check_options(config)
    require_inputs(config)
    if config.verification.allow_lossy:
        raise UserError("verification.allow_lossy=true: texts of a lossy rule cannot be replayed")
    decode_into(config, folder / "run")
    record(folder / "run", folder, config)


def record(source: Path, folder: Path, config: DictConfig) -> None:
    """Write the texts of a run directory into a recording.

    Raises:
        UserError: the run is not complete, or its texts do not have the verifier's law.
    """
    state = state_of(source)
    if state != COMPLETE:
        raise UserError(f"run={str(source)!r}: {state}; expected a run directory that is complete")
    if not read_run(source).lossless:
        raise UserError(f"run={str(source)!r}: not lossless; such texts cannot be replayed")
    run_config = read_config(source)
    require_unchanged(source, run_config)
    verifier = build(run_config.verifier)
    sampling = sampling_of(run_config, verifier)
    texts = texts_of(read_traces(source), run_config, verifier)
    for reason in drop_damaged(folder):
        print(f"{reason.removesuffix('; record anew')}; recorded again")
    writer = RecordingWriter(
        folder,
        fingerprint(verifier),
        sampling,
        run_config.max_new_tokens,
        config.top_k,
        source=str(source),
    )
    missing = [text for text in texts if text.key not in writer.done]
    with Progress(len(missing), "score", "text") as bar:
        for scored in score(missing, verifier, sampling, config.top_k):
            writer.add(scored)
            bar.update()
    # Prompts and the rest of how these texts came about, for whoever replays them.
    write_text(folder / "run.yaml", (source / "config.yaml").read_text(encoding="utf-8"))
    writer.close()
    tokens = sum(len(text.output_ids) for text in texts)
    print(f"recorded {len(texts)} texts, {tokens} tokens: replay them with recording={folder}")


ENTRY = Entry(task)
