"""A description as lines of text: a name, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from specdec.lm.accounting import LayerCache

if TYPE_CHECKING:
    from specdec.lab.description.describe import Description

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
SHOWN = 4  # stretches of layers in a line
Line = tuple[str, str]


def lines_of(found: Description) -> Iterator[Line]:
    """Yield names and what stands beside them; an empty name goes on with the one before."""
    yield from _weights(found)
    yield from _traits(found)
    yield from _cache(found)
    yield from _fit(found)
    unproven = "nothing in its configuration is against it; the proof at load time decides"
    yield "decoding", found.refused or unproven


def in_columns(lines: Iterable[Line]) -> str:
    """Write lines below each other, what is said in one column."""
    listed = list(lines)
    width = max(len(name) for name, _ in listed)
    return "\n".join(f"{name:<{width}}  {said}".rstrip() for name, said in listed)


def in_bytes(number: int) -> str:
    """Write a number of bytes to four digits: 2.5 MiB."""
    size, unit = float(number), UNITS[0]
    for unit in UNITS:
        if size < 1024 or unit == UNITS[-1]:
            break
        size /= 1024
    return f"{size:.4g} {unit}"


def layers_said(layers: Sequence[int]) -> str:
    """Write the numbers of layers as stretches: layers 0 to 4, 6."""
    stretches: list[list[int]] = []
    for layer in layers:
        if stretches and layer == stretches[-1][-1] + 1:
            stretches[-1].append(layer)
        else:
            stretches.append([layer])
    said = [f"{s[0]} to {s[-1]}" if len(s) > 1 else f"{s[0]}" for s in stretches[:SHOWN]]
    listed = ", ".join(said) + (", ..." if len(stretches) > SHOWN else "")
    return f"layer {listed}" if len(layers) == 1 else f"layers {listed}"


def _weights(found: Description) -> Iterator[Line]:
    weights, traits = found.weights, found.traits
    yield "model", f"{found.model}: {traits.family}, {traits.num_layers} layers, {found.dtype}"
    beside = f", {in_bytes(weights.buffer_bytes)} of tables beside" if weights.buffer_bytes else ""
    held = f"{in_bytes(weights.num_bytes)}{beside}"
    yield "weights", f"{weights.num_parameters:,} parameters, {held}"
    if found.rounded is not None:
        yield "", f"config.json has them rounded ({found.rounded}); this is without that"


def _traits(found: Description) -> Iterator[Line]:
    traits = found.traits
    heads = f" {traits.num_heads}:{traits.num_key_heads}" if traits.num_heads is not None else ""
    what = " (heads of queries : of keys and values)" if heads else ""
    yield "attention", f"{traits.attention}{heads}{what}"
    others = [kind for kind in dict.fromkeys(traits.layer_kinds) if kind != "full_attention"]
    for kind in others:
        layers = [number for number, each in enumerate(traits.layer_kinds) if each == kind]
        window = f" of {traits.window} tokens" if kind == "sliding_attention" else ""
        yield "", f"{kind}{window} in {len(layers)} of {traits.num_layers}: {layers_said(layers)}"
    yield "positions", traits.positions
    if traits.experts is not None:
        each = traits.experts.per_token
        taken = "" if each is None else f", of which a token takes {each}"
        yield "experts", f"{traits.experts.number}{taken}, in {layers_said(traits.experts.layers)}"
    limit = "no limit that it says" if found.max_length is None else f"{found.max_length} tokens"
    yield "context", limit


def _cache(found: Description) -> Iterator[Line]:
    if found.layers is None:
        yield "cache", f"not known: {found.cache_remark}"
        return
    assert found.cell_bytes is not None
    assert found.request_bytes is not None
    assert found.cache_bytes is not None
    by_layer = f" ({_by_layer(found.layers)})" if found.cell_bytes else ""
    yield "cache", f"{in_bytes(found.cell_bytes)} a token{by_layer}"
    if found.state_bytes:
        yield "", f"{in_bytes(found.state_bytes)} of states a request, however long its text"
    yield "", f"{in_bytes(found.request_bytes)} a request of {found.context} tokens"
    yield "", f"{in_bytes(found.cache_bytes)} for batch={found.batch}"
    if found.cache_remark is not None:
        yield "", f"of transformers' own cache: {found.cache_remark}"
    if found.stock_bytes is not None and found.stock_bytes < found.request_bytes:
        yield (
            "",
            (
                f"transformers' own cache keeps {in_bytes(found.stock_bytes)} of a request: what a"
                " window has passed goes; ours keeps all cells, since candidates are taken back"
            ),
        )


def _by_layer(layers: Sequence[LayerCache]) -> str:
    groups: dict[int, list[int]] = {}
    for number, each in enumerate(layers):
        if each.cell_bytes:
            groups.setdefault(each.cell_bytes, []).append(number)
    if {each.cell_bytes for each in layers} == groups.keys() and len(groups) == 1:
        return f"{in_bytes(layers[0].cell_bytes)} in each of {len(layers)} layers"
    said = [f"{in_bytes(size)} in {layers_said(own)}" for size, own in groups.items()]
    return "; ".join(said)


def _fit(found: Description) -> Iterator[Line]:
    memory = in_bytes(found.memory_bytes)
    if found.weight_bytes > found.memory_bytes:
        yield "memory", f"{memory}: the weights alone do not fit"
    elif found.most_requests is None:
        yield "memory", f"{memory}: the weights fit"
    else:
        many = f"{found.most_requests} requests of {found.context} tokens"
        fits = "fits" if found.most_requests >= found.batch else "does not fit"
        yield "memory", f"{memory}: room for {many} beside the weights; batch={found.batch} {fits}"
