"""Layers of other structures, trained from scratch at equal compute; see ``study.py``."""
