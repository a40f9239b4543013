"""The public name of the model for lm-evaluation-harness: `python -m rrt_edge.harness`."""

from __future__ import annotations

from rrt_edge.integrations import lm_eval

__all__ = ["lm_eval"]

if __name__ == "__main__":
    lm_eval.main()
