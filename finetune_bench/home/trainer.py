"""Take it home, inside transformers.Trainer: `RegularisedTrainer(method="hype+rdrop", model=…, args=…, …)`.

The objective and its scaling are the benchmark's, not those of `Trainer.compute_loss`, which multiplies the gradients
of classifiers by the number of accumulation steps (transformers 5.23).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from finetune_bench.errors import MachineError, UsageError
from finetune_bench.home.attached import Attached, attach, make_stack
from finetune_bench.home.batches import Inputs
from finetune_bench.method.base import Method
from finetune_bench.seeds import derive
from finetune_bench.training.examples import one_pass

if importlib.util.find_spec("accelerate") is None:
    raise MachineError(
        "transformers.Trainer needs accelerate, which is not installed: pip install 'finetune-bench[trainer]'."
    )

from transformers import Trainer, TrainerCallback


class RegularisedTrainer(Trainer):
    """A RegularisedTrainer is a transformers.Trainer that trains with a method.

    Evaluations, predictions and checkpoints during training use the weights that the method evaluates; afterwards
    `model` is a plain model that holds them.

    Args:
        method: as on the command line, "hype(eps=1e-4)+rdrop"; or a method, or several, the outermost first.
        **arguments: Trainer's own arguments.

    Raises:
        UsageError: the method's text is wrong, or Trainer is asked for what is not supported here.
    """

    def __init__(self, *, method: str | Method | Iterable[Method], **arguments: Any) -> None:
        self.method = make_stack(method)
        self.tuned: Attached | None = None
        super().__init__(**arguments)
        self._refuse()
        self.add_callback(_Hooks(self))

    def _refuse(self) -> None:
        args = self.args
        untested = {
            "several devices, DeepSpeed or FSDP": args.n_gpu > 1 or self.accelerator.distributed_type.value != "NO",
            "fp16 (bf16=True is fine)": args.fp16,
            "torch_compile": args.torch_compile,
            "auto_find_batch_size": args.auto_find_batch_size,
            "model_init": self.model_init is not None,
            "optimizers (give optimizer_cls_and_kwargs: methods are set up before the optimiser exists)": (
                self.optimizer is not None or self.lr_scheduler is not None
            ),
            "compute_loss_func": self.compute_loss_func is not None,
            "label_smoothing_factor": args.label_smoothing_factor > 0,
        }
        if refused := [what for what, asked in untested.items() if asked]:
            raise UsageError(f"RegularisedTrainer does not support {', '.join(refused)}.")

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, and leave a plain model.

        Raises:
            UsageError: a checkpoint is to be resumed; what methods have learnt is not in it.
            Unsupported: the method can't train this model with these arguments.
        """
        if resume_from_checkpoint:
            raise UsageError("RegularisedTrainer can't resume: what methods have learnt is not in a checkpoint.")
        self.optimizer = self.lr_scheduler = None
        try:
            done = super().train(None, *args, **kwargs)
            self._finish()
        finally:
            if self.tuned is not None:
                self.tuned.close()
                self.tuned = None
        return done

    def _finish(self) -> None:
        if self.tuned is not None:
            self.tuned.finish()
            self.tuned = None

    def _load_best_model(self) -> None:
        # What a checkpoint holds is a plain model.
        self._finish()
        super()._load_best_model()

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Set the methods up, then make the optimiser."""
        args = self.args
        self.tuned = attach(
            self.method,
            self.accelerator.unwrap_model(self.model),
            total_steps=self.state.max_steps,
            batches=self._one_pass,
            batch_size=args.per_device_train_batch_size * args.gradient_accumulation_steps,
            accumulation=args.gradient_accumulation_steps,
            precision="bf16" if args.bf16 else "fp32",
            clip=args.max_grad_norm or float("inf"),
            seed=args.seed,
        )
        self.optimizer = self.tuned.optimizer(super().create_optimizer(model))
        return self.optimizer

    def _one_pass(self, order: str) -> Iterator[Inputs]:
        """Yield one pass over the training data in batches of a whole step."""
        loader = self.get_train_dataloader()
        if not hasattr(loader.dataset, "__len__"):
            raise UsageError(
                "this method passes over the training data before training, in an order of its own; expected data of a "
                f"known length, got {type(loader.dataset).__name__}."
            )
        stream = Generator().manual_seed(derive(self.args.seed, "method", order, "order"))
        count = len(loader.dataset)
        size = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        steps = one_pass(count, size, stream)
        yield from DataLoader(loader.dataset, batch_sampler=steps, collate_fn=loader.collate_fn)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Return the micro-batches of a step, and count their examples."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        if lacking := [batch for batch in batches if "labels" not in batch]:
            raise UsageError(f"expected batches with 'labels'; got {', '.join(lacking[0])}.")
        self._examples = sum(len(batch["labels"]) for batch in batches)
        return batches, items

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Train on one micro-batch, weighted by its examples."""
        tuned = self.tuned
        # It was made with the optimiser.
        assert tuned is not None
        inputs = self._prepare_inputs(inputs)
        share = len(inputs["labels"]) / self._examples
        return tuned.backward(inputs, share) * share

    def _evaluating(self) -> AbstractContextManager[None]:
        return nullcontext() if self.tuned is None else self.tuned.evaluating()

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate or predict with the weights that the method evaluates."""
        with self._evaluating():
            return super().evaluation_loop(*args, **kwargs)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Save a plain model with the weights that the method evaluates."""
        with self._evaluating():
            super().save_model(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict if self.tuned is None else self.tuned.state_dict())


class _Hooks(TrainerCallback):
    """These callbacks run the methods' hooks around the optimiser's step."""

    def __init__(self, trainer: RegularisedTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        if self.trainer.tuned is not None:
            self.trainer.tuned.before_step()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if self.trainer.tuned is not None:
            self.trainer.tuned.after_step()
            # Also those that a method brought, which Trainer does not know.
            for weight in self.trainer.tuned.parameters():
                weight.grad = None
