"""The toy classifier of the book: a digit network, its first layer as a tensor train, and the baselines."""
