"""The terminal chat: `rrt-edge chat`."""
