"""The whole way in Python: a checkpoint becomes a recursive model, a bundle, and text.

    python samples/quickstart.py [CHECKPOINT]

CHECKPOINT is any Llama checkpoint folder with a tokenizer; the demo's teacher by default. Converting without training
back leaves a model that talks nonsense: this shows the steps, samples/pydoc/README.md the training between them.
"""

import sys
import tempfile
from pathlib import Path

import rrt_edge
from rrt_edge.runtime import Model

source = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "pydoc" / "teacher"

with tempfile.TemporaryDirectory() as folder:
    recursive, bundle = Path(folder) / "recursive", Path(folder) / "bundle"
    converted = rrt_edge.convert(source, recursive, loops=2, rank=16)
    print(f"{converted.parameters.source_non_embedding:,} parameters became {converted.parameters.non_embedding:,}")
    exported = rrt_edge.export(recursive, bundle, bits=32)
    print(f"bundle of {exported.bytes:,} bytes; unshared it would take {exported.unshared_bytes:,}")
    print(f"verified against the checkpoint: {rrt_edge.verify(bundle, source=recursive).ok}")
    with Model.load(bundle) as model:
        for token in model.stream("What does print do?", max_tokens=20):
            print(token.text, end="", flush=True)
        print()
