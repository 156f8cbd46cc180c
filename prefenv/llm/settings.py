"""Sizes and choices of the language model world. Imports nothing heavy: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass

from prefenv.types import whole_number

PACKAGED_MODEL = "smollm2-135m-instruct"
DEVICES = ("auto", "cpu", "cuda")
MIN_NEW_TOKENS = 4  # tokens before a response may end, so that none is empty


@dataclass(frozen=True)
class LLMSettings:
    """A language model that learns to write reviews of the sentiment that the labels prefer.

    Example:
        >>> LLMSettings(n_prompts=8).n_candidates
        4

    Raises:
        ValueError: a value makes no world; the message says what would.
    """

    model: str = PACKAGED_MODEL
    """Causal language model: smollm2-135m-instruct (a package, needs no hub), a Hugging Face name, or a folder."""
    prompt_file: str | None = None
    """Openings to be continued: a text file, one a line, or .jsonl with "prompt". None: built-in review openings.
    Each becomes the beginning of an assistant's review, which the model continues."""
    n_prompts: int = 16
    """Prompts in a pool."""
    n_candidates: int = 4
    """Responses sampled for each prompt of a pool."""
    n_samples: int = 32
    """Joint posterior draws of the reward in an observation."""
    n_eval_prompts: int = 32
    """Held-out prompts on which the win rate is measured."""
    max_new_tokens: int = 24
    """Longest response, in tokens."""
    temperature: float = 1.0
    """Sampling temperature of every response. Recorded log-probabilities are always those at temperature 1."""
    generation_batch_size: int = 32
    """Sequences generated or scored side by side: less needs less memory."""
    oracle_temperature: float = 0.25
    """Noise of the labels, in units of the sentiment in [-1, 1]; 0: the better sentiment always wins."""
    prior_std: float = 2.0
    """Standard deviation of a reward before the first label, in log-odds of being preferred."""
    beta: float = 0.1
    """Strength of the pull to the reference in the DPO loss."""
    learning_rate: float = 5e-4
    """Learning rate of AdamW on the adapter, constant within a round."""
    lora_rank: int = 16
    """Rank of the adapter."""
    epochs: int = 2
    """Passes over a round's labels in one DPO step."""
    batch_size: int = 8
    """Labelled pairs in one gradient step."""
    device: str = "auto"
    """auto (the GPU if there is one), cpu, or cuda."""

    def __post_init__(self) -> None:
        for name in (
            "n_prompts", "n_samples", "n_eval_prompts", "generation_batch_size", "lora_rank", "epochs", "batch_size",
        ):  # fmt: skip
            whole_number(name, getattr(self, name))
        whole_number("max_new_tokens", self.max_new_tokens)
        whole_number("n_candidates", self.n_candidates)
        if self.n_candidates < 2:
            raise ValueError(f"n_candidates={self.n_candidates} makes no pair: pass n_candidates=2 or more")
        if self.max_new_tokens < MIN_NEW_TOKENS:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} is too short for a response: pass {MIN_NEW_TOKENS} or more"
            )
        for name in ("temperature", "prior_std", "beta", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if not 0 <= self.oracle_temperature < float("inf"):
            raise ValueError(f"oracle_temperature={self.oracle_temperature} must be 0 or larger")
        if self.device not in DEVICES:
            raise ValueError(
                f"device={self.device!r} is none of {', '.join(DEVICES)} (CUDA_VISIBLE_DEVICES picks one GPU)"
            )
