"""What pays for each kind of weight of four models, and how far an estimate from some rows is from the whole matrix."""
