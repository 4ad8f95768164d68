"""Write the texts of a run into a recording, with how likely the verifier found their tokens."""

from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from specdec.core.errors import Unwritable, UserError
from specdec.core.jsonl import write_text
from specdec.core.sampling import Sampling
from specdec.decoding.stopping import Stopping
from specdec.lab.arm import sampling_of, stopping_of
from specdec.lab.rendered_runs import read_spec, require_unchanged, texts_of_run
from specdec.lm.fingerprint import fingerprint
from specdec.lm.hf import HFCausalLM
from specdec.recording.scoring import score
from specdec.recording.writer import RecordingWriter, drop_damaged
from specdec.report.collect import read_run
from specdec.results.progress import Progress
from specdec.results.run_dir import read_traces, state_of
from specdec.results.session import COMPLETE


def record(run: Path, folder: Path, top_k: int) -> None:
    """Write the texts of a run directory into a recording, and resume one that was interrupted.

    Args:
        run: a run directory that is complete and lossless.
        folder: of the recording.
        top_k: how many of the likeliest tokens are kept of each distribution.

    Raises:
        UserError: the run is not complete, or its texts do not have the verifier's distribution.
    """
    state = state_of(run)
    if state != COMPLETE:
        raise UserError(f"run={str(run)!r}: {state}; expected a run directory that is complete")
    if not read_run(run).lossless:
        raise UserError(f"run={str(run)!r}: not lossless; such texts cannot be replayed")
    spec = read_spec(run)
    require_unchanged(run, spec)
    verifier = spec.verifier.build()
    sampling = sampling_of(spec, verifier)
    ends = stopping_of(spec, verifier)
    texts = texts_of_run(read_traces(run), spec, verifier)
    with writing_into(folder, verifier, sampling, ends, top_k, source=str(run)) as writer:
        missing = [text for text in texts if text.key not in writer.done]
        with Progress(len(missing), "score", "text") as bar:
            for scored in score(missing, verifier, sampling, top_k):
                writer.add(scored)
                bar.update()
        # Prompts and the rest of how these texts came about, for whoever replays them.
        write_text(folder / "run.yaml", (run / "config.yaml").read_text(encoding="utf-8"))
    tokens = sum(len(text.output_ids) for text in texts)
    print(f"recorded {len(texts)} texts, {tokens} tokens: replay them with recording={folder}")


@contextmanager
def writing_into(
    folder: Path,
    verifier: HFCausalLM,
    sampling: Sampling,
    stopping: Stopping,
    top_k: int,
    source: str,
) -> Generator[RecordingWriter]:
    """Write a recording, or resume one; it is complete where all went well.

    Args:
        folder: of the recording; what is damaged there is dropped, and has to come again.
        verifier: of the texts.
        sampling: that they are drawn with, as `heeded` returns it.
        stopping: what ends them.
        top_k: how many of the likeliest tokens are kept of each distribution.
        source: where the texts come from; others do not go into the same folder.

    Raises:
        UserError: the folder holds other texts, or cannot be written.
    """
    for reason in drop_damaged(folder):
        print(f"{reason.removesuffix('; record anew')}; recorded again")
    writer = RecordingWriter(folder, fingerprint(verifier), sampling, stopping, top_k, source)
    try:
        yield writer
    except BaseException:
        with suppress(Unwritable):  # which may be what ended it
            writer.flush()
        raise
    writer.close()
