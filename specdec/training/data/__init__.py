"""What is trained on: text, samples with their masks, hidden states, answers of the verifier."""
