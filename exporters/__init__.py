"""Turn recursive checkpoints into bundles."""
