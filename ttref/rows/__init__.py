"""Many short vectors as tensor trains: packed, kept in buckets of equal ranks, looked up and scored."""
