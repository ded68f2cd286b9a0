"""The loop level: what a fused group of ops does, as explicit loops over flat buffers, for printers of all devices."""
