"""Sort texts into a datastore, in which proposers look up how a text goes on.

    python scripts/build_datastore.py data.path=my_corpus.jsonl output=my_datastore
    python scripts/build_datastore.py verifier.path=Qwen/Qwen3-8B data.path=zoo:train output=code

Then `proposer=retrieval proposer.path=my_datastore`, or `proposer=suffix
proposer.corpus_path=my_datastore`. Texts are read as training reads them (text files, JSONL, data
sets; `data.split`, `data.field` and so on are its options), and tokenised by the verifier's
tokenizer. Memory is needed for one shard of `shard` tokens at a time, 40 bytes for each.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from specdec.core.errors import UserError, require
from specdec.core.on_host import integers
from specdec.lm.checkpoint import Checkpoint
from specdec.lm.fingerprint import tokenizer_digest
from specdec.lm.loadable import vocabulary_size
from specdec.proposer.datastore import SHARD, write_datastore
from specdec.training.data.reading import Reading
from specdec.training.data.tokenised import tokenised

DEFAULTS = {
    "verifier": {"path": "zoo:verifier", "revision": None, "trust_remote_code": False},
    "data": {"path": None},
    "block": 1 << 16,  # tokens of the longest text; longer ones are parted
    "shard": SHARD,
    "output": None,
}


def main(arguments: list[str]) -> None:
    """Read, tokenise, sort, and say where it is."""
    options = OmegaConf.merge(OmegaConf.create(DEFAULTS), OmegaConf.from_dotlist(arguments))
    assert isinstance(options, DictConfig)
    unknown = sorted(set(map(str, options)) - set(DEFAULTS))
    require(not unknown, "options", unknown, ", ".join(DEFAULTS))
    data: dict[str, Any] = dict(options.data)
    path, output = data.pop("path"), options.output
    require(isinstance(path, str) and bool(path), "data.path", path, "a file of texts")
    require(isinstance(output, str) and bool(output), "output", output, "a folder")
    number = build(options, path, Reading(**data), Path(output))
    print(f"{number} tokens in {output}; proposer=retrieval proposer.path={output} reads them")


def build(options: DictConfig, path: str, reading: Reading, output: Path) -> int:
    """Write the datastore; returns how many tokens it has.

    Raises:
        UserError: the texts cannot be read, or the folder cannot be written.
    """
    verifier: dict[str, Any] = dict(options.verifier)
    checkpoint = Checkpoint.of(verifier, "verifier.path")
    tokenizer = checkpoint.tokenizer
    source = reading.source(path, "data.path")
    length = int(options.block)
    known = tokenised(source, reading, tokenizer, length, vocabulary_size(checkpoint))
    store = known.store

    def texts() -> Iterator[list[int]]:
        for place in range(store.num_samples):
            yield integers(store.sample(place)[0])

    return write_datastore(texts(), output, tokenizer_digest(tokenizer), int(options.shard))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
