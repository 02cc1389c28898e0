"""The stages of training, and the schemes they make up.

May import: errors, config, exits, common, compute, networks, training.
"""

from mess.training.stages.exits import ExitTraining
from mess.training.stages.joint import JointTraining
from mess.training.stages.pretraining import ExitAwarePretraining

__all__ = ["ExitAwarePretraining", "ExitTraining", "JointTraining"]
