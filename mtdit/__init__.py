"""The workstation side of mtdit: data, policy, training. Importing this package alone does not
import torch.
"""

__version__ = "0.1.0"
