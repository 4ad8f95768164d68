"""Give the decoder noise with other keys than its own, to see whether tests find it."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from specdec.core.randomness import RandomStream
from specdec.core.values import Context
from specdec.decoding.request import Flight


def rekeyed(
    monkeypatch: pytest.MonkeyPatch, key: Callable[[Flight, str], tuple[object, ...]]
) -> None:
    """Give every step the streams that `key` names for the purposes "draft" and "verify"."""
    original = Flight.context

    def context(flight: Flight, room: int | None = None) -> Context:
        draft, verify = (RandomStream(*key(flight, purpose)) for purpose in ("draft", "verify"))
        return replace(original(flight, room), draft_stream=draft, verify_stream=verify)

    monkeypatch.setattr(Flight, "context", context)
