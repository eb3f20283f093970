"""The two results of the introduction: a case where tensor trains lose, and one where they win."""
