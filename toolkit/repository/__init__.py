"""Writes the Triton model repository of a deployment: configs from tables, models from triton_repo/."""

from toolkit.repository.generate import generate, model_digest, settings

__all__ = ["generate", "model_digest", "settings"]
