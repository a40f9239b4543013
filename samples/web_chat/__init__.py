"""The page of the browser chat, served by `rrt-edge serve --ui`."""
