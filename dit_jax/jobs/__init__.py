"""What main.py can be asked to do, a module a mode, and what modes share."""
