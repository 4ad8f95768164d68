"""`sd.describe`: what `specdec-describe` does, with objects."""

from pathlib import Path

from specdec.lab.description.describe import Description
from specdec.lab.description.describe import describe as described
from specdec.lm.checkpoint import Checkpoint


def describe(
    path: str | Path,
    *,
    context: int | None = None,
    batch: int = 1,
    dtype: str = "float32",
    device: str = "cpu",
    memory: int | str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Description:
    """Say what a model takes in memory, and what it has, by its `config.json` alone.

    Nothing else is read: neither weights nor a tokenizer need to lie there.

    Args:
        path: a Hub id, a folder, or `zoo:verifier`.
        context: tokens of a request; None: as many as the model reads.
        batch: requests in flight.
        dtype: of weights and cache: float32, bfloat16, float16, or auto.
        device: whose memory counts: cpu, cuda, cuda:1.
        memory: of another machine, in its place: a number of bytes, or "80GiB".
        revision: a branch, a tag or a commit of the Hub.
        trust_remote_code: run code that comes with the model; nobody has looked at what it does.

    Returns:
        Exact bytes, and what fits; `str()` of it is what the command prints.

    Raises:
        UserError: no such model, or the context is longer than what it reads.
    """
    where = str(path) if isinstance(path, Path) else path
    checkpoint = Checkpoint(where, revision, trust_remote_code, "path")
    return described(checkpoint, context, batch, dtype, device, memory)
