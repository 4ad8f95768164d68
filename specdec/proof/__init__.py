"""Proofs on small tables: what a plug-in says of itself is checked before it is believed."""
