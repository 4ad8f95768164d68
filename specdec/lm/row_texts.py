"""Which tokens the cells of each row are of: what can be read again."""

from collections.abc import Sequence

from torch import Tensor


class RowTexts:
    """A text for each row, which grows and is rewound as its cells are."""

    def __init__(self, num_rows: int):
        self._texts: list[list[int]] = [[] for _ in range(num_rows)]

    def __getitem__(self, row: int) -> list[int]:
        return self._texts[row]

    def append(self, rows: Sequence[int], token_ids: Tensor) -> None:  # [B, M]
        """Add M tokens to each of B rows."""
        for row, ids in zip(rows, token_ids.tolist(), strict=True):
            self._texts[row] += ids

    def keep(self, row: int, prefix: int, nodes: Sequence[int]) -> None:
        """Keep what a cache keeps; see `CausalLM.keep`."""
        text = self._texts[row]
        assert prefix <= len(text)
        text[prefix:] = [text[prefix + node] for node in nodes]
