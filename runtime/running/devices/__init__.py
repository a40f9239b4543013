"""Devices beside the CPU: what there is, whether it computes right, and how the block runs there."""
