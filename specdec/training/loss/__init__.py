"""What a draft's distribution is trained on, one token at a time; each file is one `loss=NAME`."""
