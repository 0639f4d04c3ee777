"""The networks. This is the only package that uses Flax."""
