"""TRL trains on an acquired preference set as it is."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from experiments.acquire import AcquireConfig, acquire
from prefenv.replay.settings import ReplaySettings
from tests.prefenv.replay.small import make_table


def test_dpo_trainer_takes_it(tiny_folder: str, tmp_path: Path) -> None:
    small = ReplaySettings(n_prompts=4, n_eval_prompts=9)
    acquire(AcquireConfig(make_table(tmp_path), tmp_path / "acquired", budget=12, replay=small))
    dataset = load_dataset(str(tmp_path / "acquired"), split="train", cache_dir=str(tmp_path / "cache"))
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_folder),
        args=DPOConfig(
            output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=4, bf16=False, use_cpu=True,
            gradient_checkpointing=False, report_to="none", logging_steps=1, save_strategy="no", disable_tqdm=True,
            learning_rate=1e-3,
        ),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(tiny_folder),
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert len(losses) == 2
    assert losses[1] != losses[0]
