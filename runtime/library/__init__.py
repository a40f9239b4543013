"""The bundles installed on this machine, and how they get there."""
