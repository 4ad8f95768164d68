"""How many tokens a model can read: a prompt and its text together, or a source beside its text."""

from dataclasses import dataclass

from specdec.core.protocols import CausalLM, SourceReader


@dataclass(frozen=True)
class Room:
    """The tokens that a row can hold.

    Args:
        tokens: of the prompt and the text behind it; with an encoder, of what the decoder reads.
        source: tokens that the encoder can read; None: there is no encoder.
    """

    tokens: int
    source: int | None = None

    @classmethod
    def of(cls, model: CausalLM) -> "Room":
        """Ask a model."""
        if isinstance(model, SourceReader):
            return cls(model.max_target, model.max_source)
        return cls(model.max_length)

    @property
    def too_long(self) -> int:
        """The number of tokens from which on a prompt is too long: nothing could follow it.

        With an encoder a prompt is the source and the decoder's first token.
        """
        return self.tokens if self.source is None else self.source + 2

    def row(self, num_prompt_tokens: int) -> int:
        """Return the most tokens of a prompt of so many and its text; 0: it does not fit."""
        if num_prompt_tokens >= self.too_long:
            return 0
        return self.tokens if self.source is None else self.tokens + num_prompt_tokens - 1

    def behind(self, num_prompt_tokens: int) -> int:
        """Return how many tokens may follow a prompt that fits."""
        return self.row(num_prompt_tokens) - num_prompt_tokens

    def refusal(self, num_prompt_tokens: int) -> str | None:
        """Say that a prompt is too long, if it is."""
        if num_prompt_tokens < self.too_long:
            return None
        if self.source is None:
            return f"{num_prompt_tokens} tokens do not fit the verifier's context of {self.tokens}"
        return f"its {num_prompt_tokens - 1} tokens do not fit the {self.source} of the encoder"
