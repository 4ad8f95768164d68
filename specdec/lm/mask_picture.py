"""Attention masks as small pictures of text, any of them, one beside the other."""

from collections.abc import Mapping, Sequence

from torch import Tensor

SEES, BLIND, BAR = "x", ".", "|"
GAP = "     "  # between two pictures


def picture_of(attend: Tensor, tokens: Sequence[str], prompt: int = 0) -> list[str]:
    """Draw who sees whom, a line a token; a bar stands behind the first `prompt` tokens.

    Of a causal mask over [A B | C]:

            A B | C
        A   x . | .
        B   x x | .
        C   x x | x

    Args:
        attend: [T, T] bool, whether the token of a row sees that of a column.
        tokens: T names.
        prompt: how many of them are the prompt; 0: there is no bar.
    """
    assert attend.shape == (len(tokens), len(tokens))
    width = max(map(len, tokens))
    rows = [["", *tokens]]
    rows += [
        [name, *(SEES if seen else BLIND for seen in row)]
        for name, row in zip(tokens, attend.tolist(), strict=True)
    ]
    return [_line([cell.ljust(width) for cell in row], prompt) for row in rows]


def _line(cells: Sequence[str], prompt: int) -> str:
    name, *marks = cells
    barred = [*marks[:prompt], BAR, *marks[prompt:]] if prompt else marks
    return f"{name}   {' '.join(barred)}"


def pictures(masks: Mapping[str, Tensor], tokens: Sequence[str], prompt: int = 0) -> str:
    """Draw masks over the same tokens beside each other, each below its name."""
    columns = [[name, *picture_of(each, tokens, prompt)] for name, each in masks.items()]
    widths = [max(map(len, column)) for column in columns]
    lines = zip(*columns, strict=True)
    return "\n".join(
        GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
