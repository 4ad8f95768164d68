"""Speculative decoding for research: proposers, trees, verification rules, and honest numbers."""
