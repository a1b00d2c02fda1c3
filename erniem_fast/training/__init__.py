"""Training without padding: batches for transformers' Trainer and accelerate, losses that accumulate exactly."""

from .augment import Augmentation as Augmentation
from .collators import PackedCollator as PackedCollator
from .distill import Distillation as Distillation
from .losses import compute_loss_func as compute_loss_func
from .processes import end_process_group as end_process_group
from .sampler import TokenBudgetBatchSampler as TokenBudgetBatchSampler
from .sampler import prepare_loader as prepare_loader
from .students import student_from as student_from
