"""Experiments, one per file. Run one with `python main.py --config configs/NAME.py[:ARG] --workdir DIR`."""
