"""Texts token by token, packed as `script.js` reads them."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

KINDS = ("accepted", "recovered", "bonus")
# Texts of 200 arms over 480 prompts would be hundreds of megabytes.
MAX_TEXT_CHARACTERS = 3_000_000


def embedded(texts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pack texts as `script.js` reads them: names and prompts once, tokens as short lists."""
    arms: dict[str, int] = {}
    prompts: dict[str, int] = {}
    rows: list[list[Any]] = []
    room = MAX_TEXT_CHARACTERS
    for text in _first_of_each(texts):
        tokens = [packed_token(token) for token in text["tokens"]]
        new = "" if text["prompt"] in prompts else text["prompt"]
        size = len(json.dumps([tokens, new]))
        if size > room:
            continue
        room -= size
        arm = arms.setdefault(text["arm"], len(arms))
        prompt = prompts.setdefault(text["prompt"], len(prompts))
        rows.append([arm, text["prompt_id"], text["turn"], prompt, tokens])
    return {"arms": list(arms), "prompts": list(prompts), "texts": rows}


def _first_of_each(texts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Put the first text of every arm before the second of any."""
    seen: Counter[str] = Counter()
    ranks: list[int] = []
    for text in texts:
        ranks.append(seen[text["arm"]])
        seen[text["arm"]] += 1
    return [texts[i] for i in sorted(range(len(texts)), key=lambda i: ranks[i])]


def packed_token(token: Mapping[str, Any]) -> list[object]:
    """Return text, kind and depth, and of rejected candidates, part and experts what there is."""
    assert token["kind"] in KINDS, f"a token is one of {KINDS}, not {token['kind']!r}"
    packed: list[object] = [token["text"], KINDS.index(token["kind"]), token["depth"]]
    rare = [list(token["rejected"]), token.get("part", ""), list(token.get("experts", ()))]
    while rare and not rare[-1]:
        rare.pop()
    return [*packed, *rare]
