"""Policies of the verifier's cache: what becomes of it when it is full."""
