"""One text explained: what was proposed, what the verifier said, and what was decided."""
