"""Token tables and position tables: where tensor trains stand against what else there is."""
