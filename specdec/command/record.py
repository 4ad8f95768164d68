"""Record texts to replay: `python experiments/record.py sampling.temperature=1`."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from specdec.command.entry import Entry
from specdec.command.options import arm_spec
from specdec.core.errors import UserError, require, require_int
from specdec.lab.checks import check_arm
from specdec.lab.decoding import decode_into
from specdec.lab.record import record


def task(config: DictConfig) -> None:
    """Decode the texts, unless a run has them, and write down how likely their tokens were."""
    require_int("top_k", config.top_k, 1)
    folder = Path(HydraConfig.get().runtime.output_dir)
    if config.run is not None:
        require(isinstance(config.run, str), "run", config.run, "a run directory")
        record(Path(config.run), folder, config.top_k)
        return
    spec = arm_spec(config)
    check_arm(spec)
    if spec.allow_lossy:
        raise UserError("verification.allow_lossy=true: texts of a lossy rule cannot be replayed")
    spec.verifier.require_whole()
    decode_into(spec, folder / "run")
    record(folder / "run", folder, config.top_k)


ENTRY = Entry(task)
