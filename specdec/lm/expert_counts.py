"""How many experts a mixture has, how many a token takes, and how many several tokens touch."""

from typing import NamedTuple

from transformers import PreTrainedConfig

# What configurations of transformers call them; of most families one name is an alias of another.
NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
PER_TOKEN = ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
NESTED = "ffn_config"  # where dbrx has them


class ExpertCounts(NamedTuple):
    """The experts of each sparse layer of a model."""

    num_experts: int  # E: that the router chooses among; shared ones, which all tokens take, apart
    per_token: int  # k: that it chooses for a token

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "ExpertCounts | None":
        """Read a configuration; None: it is of a dense model."""
        text = config.get_text_config()
        for where in (text, getattr(text, NESTED, None)):
            found = [
                next((n for name in names if (n := _most(getattr(where, name, None)))), None)
                for names in (NUM_EXPERTS, PER_TOKEN)
            ]
            if found[0] is not None and found[1] is not None and found[0] > 1:
                return cls(found[0], found[1])
        return None

    def expected(self, num_tokens: int) -> float:
        """Return how many experts of a layer so many tokens touch, were they to choose by chance.

        E (1 - (1 - k/E)^n): each token takes k experts, all equally likely, whatever the others
        take. No independent choices touch more on average: a router that prefers some experts
        repeats them, by Jensen's inequality. Tokens of one text are alike, too, and touch fewer.
        So this is a bound that measured numbers stay below, unless tokens avoid each other's
        experts.
        """
        share = self.per_token / self.num_experts
        return self.num_experts * (1.0 - (1.0 - min(1.0, share)) ** num_tokens)


def _most(value: object) -> int | None:
    """Return a number, or the largest where each layer has one of its own."""
    if isinstance(value, list | tuple):
        numbers = [each for each in value if isinstance(each, int)]
        return max(numbers, default=None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
