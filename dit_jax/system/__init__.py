"""Processes, files and machines: how a run starts, tells how far it is, meets its others, ends; whole files."""
