"""A chat of a few lines on the public API; `rrt-edge chat` is the full one.

python samples/chat.py BUNDLE
"""

import sys

from rrt_edge.runtime import Model, RRTEdgeError

with Model.load(sys.argv[1]) as model:
    session, messages = model.session(), []
    policy = "full" if model.manifest.gate.threshold is None else "threshold"
    while True:
        try:
            messages.append({"role": "user", "content": input("> ")})
        except (EOFError, KeyboardInterrupt):
            break
        reply = ""
        try:
            for token in session.chat(messages, exit_policy=policy):
                print(token.text, end="", flush=True)
                reply += token.text
        except RRTEdgeError as error:
            print(f"error: {error}")
            break
        print(f"  [{session.stats.mean_depth:.2f} loops a token]")
        messages.append({"role": "assistant", "content": reply})
