"""What a text says without decoding: how a proposer and the verifier would have seen it."""
