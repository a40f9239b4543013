"""Recursive models in torch: configuration, block, adapters, gate and KV rules."""
