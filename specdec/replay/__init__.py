"""Acceptance without decoding: what a proposer would have drafted along a text that is there."""
