"""Processes, files and machines: how a run starts, finds its others, ends early and keeps its files whole."""
