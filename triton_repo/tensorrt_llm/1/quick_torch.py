"""Imports torch without looking for garbage among what it makes, then or later.

That look takes a fifth of the processor time in which a rank starts and ends (1.8 and 1.4 s on a virtual machine).
"""

import gc

gc.disable()
import torch  # noqa: E402, F401  those that import it later find it

gc.freeze()
gc.enable()
