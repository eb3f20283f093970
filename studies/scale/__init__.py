"""The same job on processes of one machine and on Ray: speed, overhead, memory, and a kill in the middle."""
