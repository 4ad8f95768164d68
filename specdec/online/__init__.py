"""Proposers that learn while they draft."""
