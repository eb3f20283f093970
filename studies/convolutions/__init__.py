"""Trained convolutions at equal bytes: trains fitted to activations with integer cores, beside integers and factors."""
