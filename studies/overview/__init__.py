"""The two results that the introduction shows: where tensor trains lose, and where they win."""
