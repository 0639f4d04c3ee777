"""Processes, files and machines: how a run starts, joins its processes, shows progress and ends; atomic files."""
