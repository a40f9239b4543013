"""What the runtime needs of the machine: files, memory, the user's folder, and onnxruntime itself."""
