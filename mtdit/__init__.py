"""The workstation side of mtdit: datasets, policy and training. Importing the package does not
import torch.
"""

__version__ = "0.1.0"
