"""Reading and rewriting ONNX files without the `onnx` package."""
