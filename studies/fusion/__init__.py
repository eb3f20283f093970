"""Views of one example multiplied: trains, low-rank fusion, Tucker and a plain network at equal numbers."""
