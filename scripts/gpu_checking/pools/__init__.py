"""Experiments with whole pools on a GPU: ``scripts/gpu-check --pools``."""
