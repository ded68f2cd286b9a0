"""Devices: the backend protocol, the loop-level IR, and one folder for each device family."""
