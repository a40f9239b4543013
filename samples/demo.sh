#!/bin/sh
# The whole way on the demo: convert, export, verify, and three questions with the depth of each token.
set -e
cd "$(dirname "$0")/.."
mkdir -p build/demo
python samples/pydoc/recipe.py build/pydoc

echo "== the teacher, converted anew: this is where training back starts from"
rrt-edge convert samples/pydoc/teacher build/demo/converted --loops 2 --rank 16

echo "== the trained recursive model: exported, and proved against the checkpoint at every depth"
rrt-edge export build/demo/bundle
rrt-edge verify build/demo/bundle --source samples/pydoc/recursive --text build/pydoc/heldout.jsonl

ask() {
    echo "== $1 (exit policy $2)"
    rrt-edge generate build/demo/bundle "$1" --exit-policy "$2" --show-depth
}
ask "What does os.path.join do?" fast
ask "In one line, what is collections.Counter?" balanced
ask "Remind me, what does heapq.heappush do?" faithful
echo "== the first with a threshold that lets only the surest tokens leave early"
ask "What does os.path.join do?" threshold=0.99999
echo "Talk to it: rrt-edge chat build/demo/bundle --show-depth"

text="Thanks for you're mail. I recieved the documents yesterday but I has not had time to read them. We think that its a
problem with the the power supply. He dont know where the keys is."
echo "== a text mended by the proofreader, a recursive model of 58 MB: before, and after"
echo "$text"
echo "$text" | python samples/proofread --show-depth
echo "Give it a file of yours: python samples/proofread FILE"
