"""Simulates a deployment under its traffic without a GPU: the real scheduler, with step times from a model."""

from toolkit.simulate.run import Simulation, simulate

__all__ = ["Simulation", "simulate"]
