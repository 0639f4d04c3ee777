"""Measures how good samples are, by distances between sets of image features."""
