"""The proof of an integer ONNX model, from the file alone.

Nothing here imports what writes models: a prover that shares code with the writer would share its mistakes.
"""
