"""Data sets as uint8 arrays, and batches as a pure function of (seed, step). TFDS lives here and nowhere else."""
