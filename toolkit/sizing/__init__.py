"""Computes how much memory a deployment takes: arithmetic only."""
