"""Many short vectors as tensor trains: packed, stored in buckets of equal ranks, looked up and scored.

`packed` has the cores of a row and their layout, `frame` the mean and principal axes of all rows, `buckets` the rows
of equal ranks, `store` the buckets with the index of each row, `sorting` the choice of ranks for each row.
"""
