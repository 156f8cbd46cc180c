"""The policy: a language model with a LoRA adapter. Without the adapter it is the reference."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN_MODELS

from prefenv.llm.models import LanguageModel, untouched_generators
from prefenv.protocols import State

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
ALPHA_PER_RANK = 2  # LoRA's update is scaled by alpha / rank
ADAPTER = "default"  # peft's name for the first adapter


def torch_seed(rng: np.random.Generator) -> int:
    """A seed for torch, drawn from a part's generator."""
    return int(rng.integers(2**31))


class Policy:
    """A language model with a LoRA adapter on its attention: one copy of the weights is policy and reference.

    A new adapter adds nothing (its B is zero), so the policy starts as the reference.

    Args:
        language_model: its base weights are never changed.
        rank: of the adapter.
    """

    def __init__(self, language_model: LanguageModel, rank: int) -> None:
        self.language_model = language_model
        config = LoraConfig(
            r=rank,
            lora_alpha=ALPHA_PER_RANK * rank,
            lora_dropout=0.0,
            target_modules=_target_modules(language_model),
            task_type="CAUSAL_LM",
        )
        with untouched_generators():
            self.model: PeftModel = get_peft_model(language_model.model, config)
        self.model.eval()

    def reset(self, rng: np.random.Generator) -> None:
        """Back to the reference: A uniform as in a linear layer, from ``rng``; B zero."""
        generator = torch.Generator().manual_seed(torch_seed(rng))
        with torch.no_grad():
            for name, parameter in self._adapter():
                if "lora_B" in name:
                    parameter.zero_()
                else:
                    start = torch.empty(parameter.shape)
                    torch.nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
                    parameter.copy_(start)

    @property
    def is_reference(self) -> bool:
        """True until the first step."""
        return not any(bool(parameter.any()) for name, parameter in self._adapter() if "lora_B" in name)

    @property
    def is_finite(self) -> bool:
        """False once a step has broken the adapter."""
        return all(bool(parameter.isfinite().all()) for _, parameter in self._adapter())

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[None]:
        """Inside, the language model is the reference."""
        with self.model.disable_adapter():
            yield

    def state_dict(self) -> State:
        """The adapter's weights by name."""
        return {name: parameter.detach().float().cpu().numpy().copy() for name, parameter in self._adapter()}

    def load_state_dict(self, state: State) -> None:
        """Restore.

        Raises:
            ValueError: the state is of another model or rank.
        """
        own = dict(self._adapter())
        if own.keys() != state.keys() or any(tuple(own[name].shape) != state[name].shape for name in own):
            raise ValueError("the saved adapter does not fit: load it with the model and lora_rank it was saved with")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(torch.from_numpy(state[name]))

    def _adapter(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, parameter) for name, parameter in self.model.named_parameters() if f".{ADAPTER}." in name]


def _target_modules(language_model: LanguageModel) -> list[str] | str | None:
    """The attention projections if they have their usual names; else what peft knows of the model; else all linear."""
    names = {name.rsplit(".", 1)[-1] for name, _ in language_model.model.named_modules()}
    if "q_proj" in names:
        return [projection for projection in ATTENTION_PROJECTIONS if projection in names]
    return None if language_model.model.config.model_type in KNOWN_MODELS else "all-linear"
