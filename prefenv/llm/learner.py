"""One DPO step a round, with TRL, on the policy's adapter."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PrinterCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from prefenv.llm.adapter import ADAPTER, Policy, torch_seed
from prefenv.llm.models import quiet, untouched_generators
from prefenv.llm.pool import TextPool
from prefenv.llm.settings import LLMSettings
from prefenv.protocols import State
from prefenv.types import Pool, Preferences

TRL_REFERENCE_ADAPTER = "ref"  # what TRL calls the copy of the adapter that it makes


def token_rows(policy: Policy, pool: TextPool, preferences: Preferences) -> list[dict[str, Any]]:
    """What the trainer learns from: each label as the very tokens that were sampled, with what the reference gave them.

    Text would be split into tokens anew, which need not give the sampled ones back, and an end token would be added to
    responses that were cut off.

    Raises:
        ValueError: a text was written for another prompt than its row's.
    """
    rows = []
    for prompt, chosen, rejected in zip(preferences.prompt, preferences.chosen, preferences.rejected, strict=True):
        better, worse = pool.candidate(int(prompt), int(chosen)), pool.candidate(int(prompt), int(rejected))
        rows.append(
            {
                "prompt_ids": policy.language_model.prompt_ids(pool.prompts[int(prompt)]),
                "chosen_ids": list(better.token_ids),
                "rejected_ids": list(worse.token_ids),
                "ref_chosen_logps": better.reference_logprob,
                "ref_rejected_logps": worse.reference_logprob,
            }
        )
    return rows


class TokenDPOTrainer(DPOTrainer):
    """TRL's trainer on rows that are tokens already and know their reference log-probabilities.

    One round of an environment is no training run of its own: nothing is reported to anyone.
    """

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _send_telemetry(self) -> None:
        pass


class DPOLearner:
    """A DPO step: ``epochs`` passes over the round's labels, with a new optimiser, against the frozen reference.

    AdamW at a constant rate without weight decay; gradients are clipped at norm 1 (TRL's default).

    The reference is the model before any step, in every round; its log-probabilities were computed when the candidates
    were read and are handed to the trainer, so that no second model and no second forward pass is needed.

    Args:
        policy: whose adapter learns.
        settings: ``beta``, ``learning_rate``, ``epochs``, ``batch_size``.
    """

    def __init__(self, policy: Policy, settings: LLMSettings) -> None:
        self._policy, self._settings = policy, settings
        self.reset(np.random.default_rng())

    def reset(self, rng: np.random.Generator) -> None:
        """Back to the reference."""
        self._rng = rng
        self._policy.reset(rng)

    def step(self, pool: Pool, preferences: Preferences) -> None:
        """Learn from these labels; from none, nothing.

        Raises:
            TypeError: the pool carries no texts.
            ValueError: the step broke the policy.
        """
        if not isinstance(pool, TextPool):
            raise TypeError(f"the DPO step needs a TextPool, got {type(pool).__name__}")
        if len(preferences) == 0:
            return
        rows = token_rows(self._policy, pool, preferences)
        seed = torch_seed(self._rng)
        with untouched_generators(), quiet(), tempfile.TemporaryDirectory() as folder, self._restored_model():
            self._trainer(rows, folder, seed).train()
        if not self._policy.is_finite:
            raise ValueError(
                f"the DPO step left NaN or infinite weights: lower learning_rate={self._settings.learning_rate}"
            )

    def _trainer(self, rows: list[dict[str, Any]], folder: str, seed: int) -> TokenDPOTrainer:
        language_model = self._policy.language_model
        trainer = TokenDPOTrainer(
            model=self._policy.model,
            args=self._config(folder, seed),
            data_collator=DataCollatorForPreference(pad_token_id=language_model.pad_id),
            train_dataset=Dataset.from_list(rows),
            processing_class=language_model.tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        # Given a model with an adapter, TRL would take a copy of it, last round's policy, as the reference.
        self._policy.model.delete_adapter(TRL_REFERENCE_ADAPTER)
        self._policy.model.set_adapter(ADAPTER)
        trainer.precompute_ref_logps = True  # the rows hold them
        return trainer

    def _config(self, folder: str, seed: int) -> DPOConfig:
        settings = self._settings
        return DPOConfig(
            output_dir=folder,
            seed=seed,
            beta=settings.beta,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="constant",
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            max_length=None,
            use_cpu=self._policy.language_model.device.type == "cpu",
            bf16=False,  # the weights already are where the device has it
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )

    @contextlib.contextmanager
    def _restored_model(self) -> Iterator[None]:
        """Afterwards the model is as before: in evaluation mode, without the trainer's wrapper of its forward."""
        try:
            yield
        finally:
            self._policy.language_model.model.__dict__.pop("forward", None)
            self._policy.model.zero_grad(set_to_none=True)
            self._policy.model.eval()

    def state_dict(self) -> State:
        """The adapter and the generator."""
        return {"adapter": self._policy.state_dict(), "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        self._policy.load_state_dict(state["adapter"])
        self._rng.bit_generator.state = state["rng"]
