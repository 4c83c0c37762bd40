"""Consistency models (Song et al., 2023, arXiv:2303.01469) on many GPUs and nodes."""

__version__ = "0.1.0"
