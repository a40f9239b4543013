"""How good each depth is on a known text, and the thresholds that keep a promise."""
