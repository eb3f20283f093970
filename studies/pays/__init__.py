"""Numbers that the map of gains lacked: tables of positions at equal bytes, digits in eight bits, entropies."""
