"""rrt-edge inside other tools: lm-evaluation-harness, llm and optimum."""
