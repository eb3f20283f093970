"""Token tables and position tables: tensor trains against the other methods of compression."""
