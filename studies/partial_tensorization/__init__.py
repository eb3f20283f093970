"""Whole models, layer by layer: what a gate accepts, which layers are safe, what healing gives back."""
