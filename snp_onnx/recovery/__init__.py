"""Recovery: an ONNX graph as a torch module, its training towards a dense model, and the way back into the graph.

Everything here needs torch, which is optional: other rooms import this one inside functions only.
"""
