"""Masks as text: every mark is the mask's, and several stand beside each other."""

import torch

from specdec.command.describe import masks_shown
from specdec.lm.mask_picture import picture_of, pictures

CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()
PREFIX = CAUSAL.clone()
PREFIX[:2, :2] = True


def test_a_mask_is_drawn_as_it_is() -> None:
    assert picture_of(CAUSAL, "ABCDE", 2) == [
        "    A B | C D E",
        "A   x . | . . .",
        "B   x x | . . .",
        "C   x x | x . .",
        "D   x x | x x .",
        "E   x x | x x x",
    ]


def test_names_may_be_words_and_there_may_be_no_prompt() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    drawn = picture_of(mask, ["def", "x"])
    assert [line.rstrip() for line in drawn] == ["      def x", "def   x   .", "x     x   x"]


def test_masks_stand_beside_each_other() -> None:
    drawn = pictures({"causal": CAUSAL, "prefix": PREFIX}, "ABCDE", 2).splitlines()
    assert drawn[0].split() == ["causal", "prefix"]
    assert drawn[2] == "A   x . | . . .     A   x x | . . ."
    assert drawn[3] == "B   x x | . . .     B   x x | . . ."


def test_the_command_draws_the_masks_that_decoding_uses() -> None:
    drawn = {"causal attention": CAUSAL, "attention=prefix_lm": PREFIX}
    assert masks_shown().splitlines() == [
        "[A B | C D E], a prompt and what was generated: a row sees its x",
        *pictures(drawn, "ABCDE", 2).splitlines(),
    ]
