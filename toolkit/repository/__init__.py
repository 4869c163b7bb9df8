"""The Triton model repository of a deployment: configs from types, models from triton_repo/."""

from toolkit.repository.generate import generate, settings

__all__ = ["generate", "settings"]
