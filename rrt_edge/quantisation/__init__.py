"""Weights in few bits, with numpy alone: what export writes and what training rounds with."""
