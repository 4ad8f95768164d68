"""What decoder layers of heads share: attention with grouped keys, rotary positions, and an MLP."""

from torch import Tensor, nn
from torch.nn.functional import silu

from specdec.core.errors import require, require_int
from specdec.heads.rotary import rotated

EPSILON = 1e-6  # of norms
HEAD_SIZE = 64  # of attention heads, where their number is left open


class DraftLayer(nn.Module):
    """The parts of one layer of H numbers, whose attention reads `read_size` of them.

    Of Qwen 3's kind with `norm_heads`: queries and keys are normalised, each head's by itself.

    Raises:
        UserError: a size is out of its range, or does not divide another.
    """

    def __init__(
        self,
        hidden_size: int,
        read_size: int,
        num_attention_heads: int | None = None,
        num_key_value_heads: int | None = None,
        intermediate_size: int | None = None,
        norm_heads: bool = False,
    ):
        super().__init__()
        self.num_heads = _num_heads(hidden_size, num_attention_heads)
        self.num_key_value_heads = _num_keys(self.num_heads, num_key_value_heads)
        width = 8 * hidden_size // 3 if intermediate_size is None else intermediate_size
        require_int("intermediate_size", width, 1)
        self.head_size = hidden_size // self.num_heads
        keys_size = self.num_key_value_heads * self.head_size
        self.queries = linear(read_size, hidden_size)
        self.keys = linear(read_size, keys_size)
        self.values = linear(read_size, keys_size)
        self.norm_queries, self.norm_keys = (
            norm(self.head_size) if norm_heads else nn.Identity() for _ in range(2)
        )
        self.attended = linear(hidden_size, hidden_size)
        self.norm_attended = norm(hidden_size)
        self.gate, self.up = linear(hidden_size, width), linear(hidden_size, width)
        self.down = linear(width, hidden_size)

    def queried(self, read: Tensor, positions: Tensor) -> Tensor:
        """Return queries [B, heads, M, dim] of what is read [B, M, read size]."""
        return rotated(self.norm_queries(self._split(self.queries(read))), positions)

    def keyed(self, read: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [B, key heads, M, dim] of what is read [B, M, read size]."""
        keys, values = self._split(self.keys(read)), self._split(self.values(read))
        return rotated(self.norm_keys(keys), positions), values

    def _split(self, states: Tensor) -> Tensor:  # [B, M, heads * dim] -> [B, heads, M, dim]
        return states.view(*states.shape[:-1], -1, self.head_size).transpose(1, 2)

    def repeated(self, states: Tensor) -> Tensor:  # [B, key heads, L, dim] -> [B, heads, L, dim]
        """Give each head of queries its keys or values."""
        return states.repeat_interleave(self.num_heads // self.num_key_value_heads, dim=1)

    def finished(self, found: Tensor, added_to: Tensor) -> Tensor:
        """Go on behind attention: [B, heads, M, dim], [B, M, H] -> [B, M, H]."""
        hidden = added_to + self.attended(found.transpose(1, 2).flatten(-2))
        read = self.norm_attended(hidden)
        return hidden + self.down(silu(self.gate(read)) * self.up(read))


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Make a projection as such layers have them, without a bias."""
    return nn.Linear(inputs, outputs, bias=False)


def norm(size: int) -> nn.RMSNorm:
    """Make a norm as such layers have them."""
    return nn.RMSNorm(size, eps=EPSILON)


def _num_heads(hidden_size: int, given: int | None) -> int:
    """Return how many heads of queries there are: as given, or of about 64 numbers each."""
    if given is None:
        fitting = (n for n in range(hidden_size // HEAD_SIZE, 1, -1) if hidden_size % (2 * n) == 0)
        given = next(fitting, 1)
    require_int("num_attention_heads", given, 1)
    expected = f"a divisor of hidden_size={hidden_size} that leaves an even number"
    require(hidden_size % (2 * given) == 0, "num_attention_heads", given, expected)
    return given


def _num_keys(num_heads: int, given: int | None) -> int:
    """Return how many heads of keys there are: as given, or half as many as of queries."""
    if given is None:
        return num_heads // 2 if num_heads % 2 == 0 else num_heads
    require_int("num_key_value_heads", given, 1)
    expected = f"a divisor of num_attention_heads={num_heads}"
    require(num_heads % given == 0, "num_key_value_heads", given, expected)
    return given
