"""Training: configurations, the trainer, the moving average, checkpoints (floor 6)."""

from fewstep.training.checkpoint import Checkpoint, checkpoints, latest, read_checkpoint, write_checkpoint
from fewstep.training.config import DiffusionConfig, RunConfig, TrainConfig, override
from fewstep.training.describe import model_config, written_out
from fewstep.training.e2e_config import E2EConfig
from fewstep.training.ema import Ema
from fewstep.training.run import build, train_model, train_steps
from fewstep.training.trainer import StepReport, Trainer

__all__ = [
    "Checkpoint",
    "DiffusionConfig",
    "E2EConfig",
    "Ema",
    "RunConfig",
    "StepReport",
    "TrainConfig",
    "Trainer",
    "build",
    "checkpoints",
    "latest",
    "model_config",
    "override",
    "read_checkpoint",
    "train_model",
    "train_steps",
    "write_checkpoint",
    "written_out",
]
