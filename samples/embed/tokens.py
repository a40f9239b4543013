"""Embed a bundle in an application: five lines, then what early exit tells.

python samples/embed/tokens.py BUNDLE [QUESTION]
"""

import sys

from rrt_edge.runtime import Model

question = sys.argv[2] if len(sys.argv) > 2 else "What does os.path.join do?"

with Model.load(sys.argv[1]) as model:
    session = model.session()
    tokens = []
    for token in session.stream(question):
        print(token.text, end="", flush=True)
        tokens.append(token)

print()
for token in tokens:
    print(f"{token.text!r:>20}  left after loop {token.depth}  (gate {token.gate:.2f})")
print(f"{session.stats.block_rows_per_token:.2f} block rows a token; without early exit {model.loops}")
