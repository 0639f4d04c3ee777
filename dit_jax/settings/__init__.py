"""A run's settings: configs as files and flags, the rules they must keep, values that are filled in, and warnings."""
