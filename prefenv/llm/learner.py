"""One DPO step a round, with TRL, on the policy's adapter."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from prefenv.llm.adapter import ADAPTER, Policy, torch_seed
from prefenv.llm.generation import Response, Sampling, sample_responses
from prefenv.llm.models import quiet, untouched_generators
from prefenv.llm.pool import TextPool
from prefenv.llm.settings import LLMSettings
from prefenv.protocols import State
from prefenv.types import Pool, Preferences

TRL_REFERENCE_ADAPTER = "ref"  # what TRL calls the copy of the adapter that it makes
NOT_LEARNED = -100  # label of a token that the log-probabilities leave out, in torch and TRL


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


def reference_responses(
    policy: Policy, pool: TextPool, preferences: Preferences, sampling: Sampling, seed: int
) -> list[Response]:
    """For each label a response that the reference wrote to its prompt; labels of one prompt share theirs."""
    labelled = [pool.prompts[int(row)] for row in preferences.prompt]
    with policy.as_reference():
        written = sample_responses(policy.language_model, list(dict.fromkeys(labelled)), 1, sampling, seed)
    by_prompt = {response.prompt_id: response for (response,) in written}
    return [by_prompt[prompt.id] for prompt in labelled]


class TokenCollator(DataCollatorForPreference):
    """TRL's collator, which also pads the responses under ``bonus_ids`` where the rows have them.

    They become the entry ``bonus`` of the batch: what the model needs to give their log-probabilities.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch, padded on the right."""
        batch: dict[str, Any] = super().torch_call(examples)
        if "bonus_ids" in examples[0]:
            rows = [(row["prompt_ids"], row["bonus_ids"]) for row in examples]
            ids = [torch.tensor(prompt + response) for prompt, response in rows]
            labels = [torch.tensor([NOT_LEARNED] * len(prompt) + response) for prompt, response in rows]
            batch["bonus"] = {
                "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
                "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
                "labels": pad_sequence(labels, batch_first=True, padding_value=NOT_LEARNED),
            }
        return batch


class TokenDPOTrainer(DPOTrainer):
    """TRL's trainer on rows that are tokens already and know their reference log-probabilities.

    One round of an environment is no training run of its own: nothing is reported to anyone.

    Attributes:
        exploration_bonus: alpha, for batches with a ``bonus``: their loss is the mean over the labels of
            DPO loss + alpha · log policy(bonus response | prompt).
    """

    exploration_bonus: float = 0.0

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:  # fmt: skip
        """TRL's loss of the batch, with the bonus where there is one."""
        pairs = {key: value for key, value in inputs.items() if key != "bonus"}
        loss = super().compute_loss(model, pairs, return_outputs, num_items_in_batch)
        if "bonus" not in inputs:
            return loss
        logprob = model(**inputs["bonus"], use_cache=False, fused_lm_head=True).log_probs.sum(dim=1)
        return loss + self.exploration_bonus * logprob.mean()

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _send_telemetry(self) -> None:
        pass


class DPOLearner:
    """A DPO step: ``epochs`` passes over the round's labels, with a new optimiser, against the frozen reference.

    AdamW at a constant rate without weight decay; gradients are clipped at norm 1 (TRL's default).

    The reference is the model before any step, in every round; its log-probabilities were computed when the candidates
    were read and are handed to the trainer, so that no second model and no second forward pass is needed.

    A step with an exploration bonus alpha is one of XPO [arXiv 2405.21046, Algorithm 1]: a label's loss is
    DPO loss + alpha · log policy(y | x), with y a response of the reference to the label's prompt x, so that the policy
    is pushed away from what the reference would say. In the paper, in TRL's trainer (1.12 has one, 1.16 none) and in
    BootsofLagrangian/random-vs-apl, y is one half of the pair itself. Here both halves come from the policy's own pool,
    and y is sampled on the side: one for each labelled prompt and step, the same in every pass.

    Args:
        policy: whose adapter learns.
        settings: ``beta``, ``learning_rate``, ``epochs``, ``batch_size``.
        sampling: how the reference's responses are sampled.
    """

    def __init__(self, policy: Policy, settings: LLMSettings, sampling: Sampling) -> None:
        self._policy, self._settings, self._sampling = policy, settings, sampling
        self.reset(np.random.default_rng())

    def reset(self, rng: np.random.Generator) -> None:
        """Back to the reference."""
        self._rng = rng
        self._policy.reset(rng)

    def step(self, pool: Pool, preferences: Preferences, exploration_bonus: float = 0.0) -> None:
        """Learn from these labels; from none, nothing.

        Args:
            pool: whose candidates the labels are about.
            preferences: the labels.
            exploration_bonus: alpha, per nat. With 0 nothing is sampled.

        Raises:
            TypeError: the pool carries no texts.
            ValueError: the bonus is negative or not finite, or the step broke the policy.
        """
        if not 0 <= exploration_bonus < math.inf:
            raise ValueError(f"exploration_bonus={exploration_bonus} must be 0 or more, and finite")
        if not isinstance(pool, TextPool):
            raise TypeError(f"the DPO step needs a TextPool, got {type(pool).__name__}")
        if len(preferences) == 0:
            return
        rows = token_rows(self._policy, pool, preferences)
        seed = torch_seed(self._rng)
        if exploration_bonus > 0:
            bonus = reference_responses(self._policy, pool, preferences, self._sampling, torch_seed(self._rng))
            rows = [row | {"bonus_ids": list(response.token_ids)} for row, response in zip(rows, bonus, strict=True)]
        with untouched_generators(), quiet(), tempfile.TemporaryDirectory() as folder, self._restored_model():
            self._trainer(rows, folder, seed, exploration_bonus).train()
        if not self._policy.is_finite:
            raise ValueError(
                f"the DPO step left NaN or infinite weights: lower learning_rate={self._settings.learning_rate}"
            )

    def _trainer(
        self, rows: list[dict[str, Any]], folder: str, seed: int, exploration_bonus: float = 0.0
    ) -> TokenDPOTrainer:
        language_model = self._policy.language_model
        trainer = TokenDPOTrainer(
            model=self._policy.model,
            args=self._config(folder, seed),
            data_collator=TokenCollator(pad_token_id=language_model.pad_id),
            train_dataset=Dataset.from_list(rows),
            processing_class=language_model.tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        # Given a model with an adapter, TRL would take a copy of it, last round's policy, as the reference.
        self._policy.model.delete_adapter(TRL_REFERENCE_ADAPTER)
        self._policy.model.set_adapter(ADAPTER)
        trainer.precompute_ref_logps = True  # the rows hold them
        trainer.exploration_bonus = exploration_bonus
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
            remove_unused_columns=False,  # TRL does not know of bonus_ids; the rows hold nothing that is not used
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
