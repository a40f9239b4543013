"""An HTTP server for a bundle that clients of OpenAI's API can talk to (extra `[serve]`)."""
