"""The modes of main.py, one module per mode, and what they share."""
