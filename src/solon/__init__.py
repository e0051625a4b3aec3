"""Solon trains language models on a constitution (Constitutional AI, Bai et al. 2022, arXiv 2212.08073)."""

__version__ = "0.1.0"
