"""A shard: whole texts in one file, whose tokens stand one after another, with offsets."""

import json
from collections.abc import Mapping, Sequence
from hashlib import file_digest
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from specdec.recording.manifest import MANIFEST, Shard, reason_of, refusal
from specdec.recording.scoring import Scored
from specdec.recording.texts import Text

TEXT_FIELDS = ("prompt_id", "category", "turn", "sample", "finish_reason", "budget")
OF_TOKENS = ("output_ids", "log_p", "top_ids", "top_log_p", "logsumexp")
TENSORS = ("prompt_ids", "prompt_offsets", "output_offsets", *OF_TOKENS)


def packed(scored: Sequence[Scored]) -> bytes:
    """Put texts into one file: tensors, and in its header whatever else is known of them."""
    texts = [each.text for each in scored]
    tensors = {
        "prompt_ids": _integers([token for text in texts for token in text.prompt_ids]),
        "prompt_offsets": _offsets([len(text.prompt_ids) for text in texts]),
        "output_ids": _integers([token for text in texts for token in text.output_ids]),
        "output_offsets": _offsets([len(text.output_ids) for text in texts]),
        "log_p": torch.tensor([each for text in texts for each in text.log_p], dtype=torch.float32),
        "top_ids": torch.cat([each.top_ids for each in scored]),
        "top_log_p": torch.cat([each.top_log_p for each in scored]),
        "logsumexp": torch.cat([each.logsumexp for each in scored]),
    }
    fields = [{name: getattr(text, name) for name in TEXT_FIELDS} for text in texts]
    # One entry: several would come in another order, and so with another checksum, every time.
    return save(tensors, {"texts": json.dumps(fields)})


def _integers(values: Sequence[int]) -> Tensor:  # [n] int32, or int64 where it takes that
    narrow = max(values, default=0) <= torch.iinfo(torch.int32).max
    return torch.tensor(values, dtype=torch.int32 if narrow else torch.int64)


def _offsets(lengths: Sequence[int]) -> Tensor:  # [n] -> [n + 1]
    return _integers([0, *accumulate(lengths)])


def read_shard(folder: Path, shard: Shard, top_k: int) -> list[Scored]:
    """Read a shard, if it is what was written."""
    _check_file(folder, shard)
    try:
        with safe_open(str(folder / shard.file), framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in TENSORS}
            fields = json.loads(file.metadata()["texts"])
        _check_sizes(shard, top_k, tensors, fields)
        return _unpacked(tensors, fields)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        what = f"{shard.file} is not what {MANIFEST} lists ({reason_of(error)}); record anew"
        raise refusal(folder, what) from None


def _check_file(folder: Path, shard: Shard) -> None:
    path = folder / shard.file
    if not path.is_file():
        raise refusal(folder, f"{shard.file} is missing; record anew")
    size = path.stat().st_size
    if size < shard.num_bytes:
        what = f"{shard.file} is truncated ({size} of {shard.num_bytes} bytes); record anew"
        raise refusal(folder, what)
    with path.open("rb") as content:
        found = file_digest(content, "sha256").hexdigest()
    if found != shard.sha256:
        what = f"{shard.file} is damaged (sha256 {found[:16]}..., not {shard.sha256[:16]}...)"
        raise refusal(folder, f"{what}; record anew")


def _check_sizes(
    shard: Shard, top_k: int, tensors: Mapping[str, Tensor], fields: Sequence[object]
) -> None:
    """Compare a shard with what is listed of it; ValueError says what differs."""
    num_texts, num_tokens = shard.num_texts, shard.num_tokens
    sizes = {name: (num_tokens,) for name in OF_TOKENS}
    sizes |= dict.fromkeys(("top_ids", "top_log_p"), (num_tokens, top_k))
    sizes |= dict.fromkeys(("prompt_offsets", "output_offsets"), (num_texts + 1,))
    for name, size in sizes.items():
        if tensors[name].shape != size:
            raise ValueError(f"{name} is {list(tensors[name].shape)}, not {list(size)}")
    for name in ("prompt", "output"):
        offsets = tensors[f"{name}_offsets"].tolist()
        ends = offsets[0], offsets[-1]
        if offsets != sorted(offsets) or ends != (0, len(tensors[f"{name}_ids"])):
            raise ValueError(f"{name}_offsets do not go through {name}_ids")
    if len(fields) != num_texts:
        raise ValueError(f"{len(fields)} texts, not {num_texts}")


def _unpacked(tensors: Mapping[str, Tensor], fields: Sequence[Mapping[str, Any]]) -> list[Scored]:
    prompt_ids = _split(tensors, "prompt_ids", "prompt_offsets")
    output_ids, log_p, *rest = (_split(tensors, name, "output_offsets") for name in OF_TOKENS)
    texts = [
        Text(
            prompt_ids=tuple(prompt_ids[number].tolist()),
            output_ids=tuple(output_ids[number].tolist()),
            log_p=tuple(log_p[number].tolist()),
            **fact,
        )
        for number, fact in enumerate(fields)
    ]
    return [Scored(text, *parts) for text, *parts in zip(texts, *rest, strict=True)]


def _split(tensors: Mapping[str, Tensor], name: str, offsets: str) -> list[Tensor]:
    """Give each text its part, without a copy."""
    return list(tensors[name].split(tensors[offsets].diff().tolist()))
