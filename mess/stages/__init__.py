"""The stages that recipes are made of."""

from mess.stages.exits import ExitTraining
from mess.stages.joint import JointTraining
from mess.stages.pretraining import ExitAwarePretraining

__all__ = ["ExitAwarePretraining", "ExitTraining", "JointTraining"]
