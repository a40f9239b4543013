"""The graphs that devices run in the place of the loop graph."""
