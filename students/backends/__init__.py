"""Runtimes of the student: PyTorch, OpenVINO, ONNX Runtime."""
