"""How deep candidates go at each step."""
