"""Trains fitted to what layers see, beside the other methods: two networks, their inputs, and what separates them."""
