"""The native ops.

Every one is a torch reference, a compiled op for CPU and CUDA, and a public function that chooses.
"""
