"""The block run by onnxruntime, on the CPU or on a device, with the keys and values of a sequence."""
