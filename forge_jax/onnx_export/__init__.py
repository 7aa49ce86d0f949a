"""Any decoder as an ONNX file: `forward` is traced with open sizes, and every primitive of JAX becomes ONNX nodes.

Part of the front. No op of the library is known here: an op that is added later is exported if its primitives are
written (`arithmetic`, `shapes`, `reductions`, `indexing`, `lowering`), and is an error that names the primitive if not.
"""
