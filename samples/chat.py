"""A chat of a few lines on the public API; `rrt-edge chat` is the full one.

python samples/chat.py BUNDLE
"""

import sys

from rrt_edge.runtime import Model, RRTEdgeError

if len(sys.argv) != 2:
    sys.exit("usage: python samples/chat.py BUNDLE")

with Model.load(sys.argv[1]) as model:
    session, messages = model.session(), []
    print("An empty line forgets the conversation, Ctrl-C stops a reply, Ctrl-D leaves.")
    while True:
        try:
            question = input("> ")
        except (EOFError, KeyboardInterrupt):
            break
        if not question:
            messages = []
            continue
        asked = [*messages, {"role": "user", "content": question}]
        reply = ""
        try:
            for token in session.stream(asked):
                print(token.text, end="", flush=True)
                reply += token.text
        except KeyboardInterrupt:
            print(" (stopped)", end="")
        except RRTEdgeError as error:  # the context is full, say: the conversation stays as it was
            print(f"error: {error}")
            continue
        if not reply:  # stopped before its first token
            print()
            continue
        # The session keeps the keys and values of all that the next question repeats.
        messages = [*asked, {"role": "assistant", "content": reply}]
        stats = session.stats
        print(f"\n  [{stats.decode_tokens_per_second:.0f} tokens/s, {stats.mean_depth:.2f} of {model.loops} loops]")
