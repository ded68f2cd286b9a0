"""Measurements: side by side in one run, interleaved, medians and ratios, JSON that the docs' tables are made from."""
