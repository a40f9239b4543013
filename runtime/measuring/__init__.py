"""How fast a bundle runs on this machine."""
