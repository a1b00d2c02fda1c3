"""Inference: texts to vectors, CUDA graphs, results that no batch changes."""
