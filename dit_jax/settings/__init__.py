"""A run's settings: configs as files and flags, the rules that they keep, what is filled in and warned of."""
