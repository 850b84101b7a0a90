"""LoT for transformers: a ``Trainer`` whose model has students."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Trainer, TrainerCallback

from .regularizer import IGNORED, LoT
from .running_index import RunningIndex


class LoTTrainer(Trainer):
    """A transformers ``Trainer`` of a teacher and its students: causal language models, or classifiers.

    The trainer's optimizer is that of all networks. After each of its updates the students have their
    additional batches, drawn from the training data by an order of their own. ``max_grad_norm`` holds for the
    networks together in joint steps; ``lot.clip_norm`` for each in the students' own.

    Args:
        lot: called with each batch but its ``labels`` as keyword arguments.
        causal: whether labels are the tokens themselves, each to be predicted from those before.
        arguments: of the ``Trainer``, all but ``model``; needs ``args``.

    Example::

        def make():
            return AutoModelForCausalLM.from_config(config)

        lot = LoT(make(), make_student=make)
        LoTTrainer(lot, args=TrainingArguments("out"), train_dataset=data, data_collator=collate).train()
        lot.teacher.save_pretrained("regularized")
    """

    def __init__(self, lot: LoT, *, causal: bool = True, **arguments: Any) -> None:
        arguments["args"].remove_unused_columns = False  # it would look for the columns in LoT's signature
        super().__init__(model=lot, **arguments)
        self.lot = lot
        self.causal = causal
        self.add_callback(_Students(self))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The sum of all networks' losses in training, the teacher's own in evaluation."""
        x, y = self.separated(inputs)
        if model.training:
            z_t, z_s = model(x, "joint")
            losses = self.lot.losses(z_t, z_s, y)
            self.lot.stats = losses.stats
            loss = losses.total
        else:
            z_t = model(x)
            loss = functional.cross_entropy(z_t.flatten(0, -2), y.flatten(), ignore_index=IGNORED)
        return (loss, {"logits": z_t}) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Loss, logits and labels of the teacher."""
        with torch.no_grad():
            batch = self._prepare_inputs(inputs)
            loss, outputs = self.compute_loss(model, batch, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        return loss, outputs["logits"], batch["labels"]

    def separated(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
        """Keyword arguments of the networks, and targets, which for causal models are moved by one."""
        x = {name: value for name, value in inputs.items() if name != "labels"}
        y = inputs["labels"]
        return x, functional.pad(y[:, 1:], (0, 1), value=IGNORED) if self.causal else y

    def extra_batch(self, index: RunningIndex) -> tuple[dict[str, Any], Tensor]:
        """The students' next one."""
        examples = [cast(Any, self.train_dataset)[int(i)] for i in index.batch(self.lot.extra_batches)]
        return self.separated(self._prepare_inputs(self.data_collator(examples)))


class _Students(TrainerCallback):
    """The students' additional steps behind each update."""

    def __init__(self, trainer: LoTTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, lot = self.trainer, self.trainer.lot
        lot.steps = state.global_step + 1
        lot.extra_batches = state.global_step * (lot.student_steps - 1)
        index = RunningIndex(len(cast(Any, trainer.train_dataset)), args.train_batch_size, seed=args.seed)
        for _ in range(lot.student_steps - 1):
            x, y = trainer.extra_batch(index)
            lot.student_step(x, y, trainer.optimizer)
