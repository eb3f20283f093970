"""Document vectors in few bytes: what is still found, how fast, and what a third core would buy."""
