"""The stages that recipes are made of."""

from mess.training.stages.exits import ExitTraining
from mess.training.stages.joint import JointTraining
from mess.training.stages.pretraining import ExitAwarePretraining

__all__ = ["ExitAwarePretraining", "ExitTraining", "JointTraining"]
