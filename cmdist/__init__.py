"""Consistency models (Song et al., 2023, arXiv:2303.01469) on many GPUs and nodes."""

import os

__version__ = "0.1.0"

# Threads of an operator that wait for each other sleep: where the cores have other work too, spinning makes a step many
# times slower. OpenMP reads it when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
