"""The language model world, put together."""

from __future__ import annotations

from prefenv.llm.adapter import Policy
from prefenv.llm.evaluator import WinRateEvaluator
from prefenv.llm.features import Reader
from prefenv.llm.generation import Sampling
from prefenv.llm.learner import DPOLearner
from prefenv.llm.models import check_prompt_lengths, load_language_model
from prefenv.llm.prompts import PromptDeck, read_prompts, review_openings
from prefenv.llm.rewards import DistinctWordSentiment, PoolReward, Sentiment
from prefenv.llm.settings import LLMSettings
from prefenv.llm.source import PolicySource
from prefenv.oracles.bradley_terry import BradleyTerryOracle
from prefenv.posteriors.bayesian_linear import BayesianLinearPosterior
from prefenv.protocols import World


def make_llm_world(settings: LLMSettings) -> World:
    """A world whose policy is a real language model, loaded here once.

    Candidates are sampled from the policy, labels follow the sentiment of the text, and each round's DPO step trains a
    LoRA adapter against the frozen reference.

    Raises:
        ValueError: too few prompts, an empty prompt file, or a model or device that cannot be had.
        FileNotFoundError: no such prompt file or model folder.
        ImportError: a package of ``prefenv[llm]`` is missing.
    """
    prompts = read_prompts(settings.prompt_file) if settings.prompt_file is not None else review_openings()
    deck = PromptDeck(prompts, settings.n_eval_prompts, settings.n_prompts)
    sentiment = Sentiment()
    policy = Policy(load_language_model(settings.model, settings.device), settings.lora_rank)
    sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.generation_batch_size)
    check_prompt_lengths(policy.language_model, prompts, settings.max_new_tokens)
    reader = Reader(policy, prompts, sampling)
    return World(
        name="llm",
        source=PolicySource(policy, reader, deck, sampling, settings.n_candidates, settings.beta),
        oracle=BradleyTerryOracle(PoolReward(sentiment), settings.oracle_temperature),
        posterior=BayesianLinearPosterior(reader.embedding_size, settings.n_samples, settings.prior_std),
        learner=DPOLearner(policy, settings, sampling),
        evaluator=WinRateEvaluator(policy, reader, deck, sampling, sentiment, DistinctWordSentiment(sentiment)),
        n_prompts=settings.n_prompts,
        n_candidates=settings.n_candidates,
        embedding_size=reader.embedding_size,
        n_samples=settings.n_samples,
        settings=settings,
    )
