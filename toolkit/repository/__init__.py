"""The Triton model repository of a deployment: configs from types, models from triton_repo/."""

from toolkit.repository.generate import generate, model_digest, settings

__all__ = ["generate", "model_digest", "settings"]
