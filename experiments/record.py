"""Record texts to replay: `python experiments/record.py sampling.temperature=1`."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from specdec.experiments.app import build, run

from specdec.core.errors import UserError, require, require_int
from specdec.report.progress import Progress


def task(config: DictConfig) -> None:
    """Decode the texts, unless a run has them, and write down how likely their tokens were."""
    # Here and not above, because torch takes seconds to import and --help should not wait.
    from specdec.experiments.arm import check_options
    from specdec.experiments.decode import decode_into
    from specdec.experiments.inputs import require_inputs

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
    from specdec.experiments.arm import sampling_of
    from specdec.experiments.recorded_texts import read_config, require_unchanged, texts_of

    from specdec.core.jsonl import write_text
    from specdec.lm.fingerprint import fingerprint
    from specdec.replay.recording import RecordingWriter, drop_damaged
    from specdec.replay.scoring import score
    from specdec.report.collect import read_run
    from specdec.report.run_dir import read_traces, state_of
    from specdec.report.session import COMPLETE

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


def main() -> None:
    """Console script `specdec-record`."""
    run(task, "record")


if __name__ == "__main__":
    main()
