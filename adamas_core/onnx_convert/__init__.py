"""Put the sparse operator into an ONNX model, in the place of its attention.

`group_query` replaces ONNX Runtime's own operator, and `plain_attention` the nodes that PyTorch's
exporter writes. `convert` is the whole. Nothing here is imported before a model is converted, and
`onnx` is needed only then.
"""

from .convert import Converted, convert, convert_file

__all__ = ["Converted", "convert", "convert_file"]
