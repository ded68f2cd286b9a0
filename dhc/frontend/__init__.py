"""Ways into a graph: ONNX import and export, and the Python graph-building API."""
