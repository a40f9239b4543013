"""Run bundles with onnxruntime: no torch, no transformers."""
