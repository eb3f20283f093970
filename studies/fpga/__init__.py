"""The data path on a chip: size, clock and cycles of a layer as a tensor train and as a dense matrix."""
