"""How good the language model policy is now: win rate against the reference on held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prefenv.evaluation.win_rate import sampled_win_rate
from prefenv.llm.adapter import Policy, torch_seed
from prefenv.llm.capability import Cloze
from prefenv.llm.features import Candidate, Reader
from prefenv.llm.generation import Response, Sampling, sample_responses
from prefenv.llm.prompts import Prompt, PromptDeck
from prefenv.llm.rewards import TextReward
from prefenv.protocols import RewardPosterior, State
from prefenv.types import Evaluation, FloatArray

N_REFERENCE = 2  # reference responses a held-out prompt: one to beat, one more to rank


def share_of_wins(reward: FloatArray, opponent: FloatArray) -> FloatArray:
    """(E,) float64: 1 where the reward is larger than the opponent's, one half where it is equal, else 0.

    >>> share_of_wins(np.array([1.0, 0.0, 2.0]), np.array([0.0, 0.0, 3.0])).tolist()
    [1.0, 0.5, 0.0]
    """
    return np.asarray(0.5 + 0.5 * np.sign(reward - opponent), dtype=np.float64)


def ranking_accuracy(belief: FloatArray, reward: FloatArray) -> float:
    """Share of pairs within a row that belief orders as reward does; an undecided belief counts one half.

    Pairs with equal rewards do not count; without any other pair the share is one half.

    Args:
        belief: (E, c).
        reward: (E, c).

    >>> ranking_accuracy(np.array([[0.1, 0.2, 0.3]]), np.array([[1.0, 3.0, 2.0]]))
    0.6666666666666666
    """
    first, second = np.triu_indices(reward.shape[1], 1)
    truth = np.sign(reward[:, first] - reward[:, second])
    guess = np.sign(belief[:, first] - belief[:, second])
    counted = truth != 0
    return float((0.5 + 0.5 * truth * guess)[counted].mean()) if counted.any() else 0.5


class WinRateEvaluator:
    """Win rate of sampled responses against the reference's, with common random numbers.

    On each held-out prompt the policy and the reference sample with the same noise, in every round of an episode: where
    they agree they write the same text, which is a tie, and the win rate is exactly one half until the first step.
    Responses of the reference are written once an episode.

    Besides: the second judge's win rate; ``kl``, the mean over the policy's responses of log(policy / reference), which
    estimates the divergence where the sampling temperature is 1;
    ``capability``, the value of :class:`prefenv.llm.capability.Cloze`; ``posterior_accuracy``, over the pairs among
    three responses to a held-out prompt: the policy's and two of the reference's.

    Args:
        policy: that is measured.
        reader: that embeds.
        deck: holds the evaluation prompts; its owner is reset first.
        sampling: how responses are sampled.
        reward: that the labels go by.
        second: the other judge.
    """

    def __init__(
        self, policy: Policy, reader: Reader, deck: PromptDeck, sampling: Sampling, reward: TextReward,
        second: TextReward,
    ) -> None:  # fmt: skip
        self._policy, self._reader, self._deck, self._sampling = policy, reader, deck, sampling
        self._reward, self._second = reward, second
        self._cloze = Cloze(policy.language_model, sampling.batch_size)

    def reset(self, rng: np.random.Generator) -> None:
        """Write the reference's responses to the episode's held-out prompts."""
        self._prompts = self._deck.held_out
        self._seed = torch_seed(rng)
        self._other_seed = torch_seed(rng)
        with self._policy.as_reference():
            drawn = [self._sample(seed) for seed in (self._seed, self._other_seed)]
        read = [self._reader.read(self._prompts, responses, by_reference=True) for responses in drawn]
        self._reference = [candidates for candidates, _ in read]
        self._reference_embedding = np.stack([embedding for _, embedding in read], axis=1)

    def evaluate(self, posterior: RewardPosterior) -> Evaluation:
        """Measure the policy as it is now."""
        candidates, embedding = self._policy_responses()
        columns = [candidates, *self._reference]
        embeddings = np.concatenate([embedding[:, None], self._reference_embedding], axis=1)
        reward = np.stack([self._reward(_texts(column)) for column in columns], axis=1)
        second = [self._second(_texts(column)) for column in columns[:2]]
        return Evaluation(
            win_rate=sampled_win_rate(share_of_wins(reward[:, 0], reward[:, 1])),
            second=sampled_win_rate(share_of_wins(second[0], second[1])).mean,
            capability=self._cloze(),
            kl=float(np.mean([candidate.logprob - candidate.reference_logprob for candidate in candidates])),
            posterior_accuracy=ranking_accuracy(posterior.mean(embeddings), reward),
        )

    def _policy_responses(self) -> tuple[list[Candidate], FloatArray]:
        if self._policy.is_reference:
            return self._reference[0], self._reference_embedding[:, 0]
        return self._reader.read(self._prompts, self._sample(self._seed), by_reference=False)

    def _sample(self, seed: int) -> list[list[Response]]:
        return sample_responses(self._policy.language_model, self._prompts, 1, self._sampling, seed)

    def state_dict(self) -> State:
        """The held-out prompts, the noise and the reference's responses."""
        flat = [candidate for column in self._reference for candidate in column]
        return {
            "prompt_id": np.array([prompt.id for prompt in self._prompts], dtype=np.int64),
            "seed": self._seed,
            "token_ids": np.concatenate([np.array(candidate.token_ids, dtype=np.int64) for candidate in flat]),
            "length": np.array([len(candidate.token_ids) for candidate in flat], dtype=np.int64),
            "logprob": np.array([candidate.logprob for candidate in flat]),
            "embedding": self._reference_embedding.copy(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        self._prompts = self._deck.by_id(state["prompt_id"])
        self._seed = int(state["seed"])
        self._reference_embedding = state["embedding"].copy()
        ids = np.split(state["token_ids"], np.cumsum(state["length"])[:-1])
        flat = [
            self._restored(prompt, token_ids.tolist(), float(logprob))
            for prompt, token_ids, logprob in zip(self._prompts * N_REFERENCE, ids, state["logprob"], strict=True)
        ]
        n = len(self._prompts)
        self._reference = [flat[column * n : (column + 1) * n] for column in range(N_REFERENCE)]

    def _restored(self, prompt: Prompt, token_ids: list[int], logprob: float) -> Candidate:
        text = self._policy.language_model.text(token_ids)
        return Candidate(prompt.id, text, tuple(token_ids), logprob, logprob)


def _texts(candidates: Sequence[Candidate]) -> list[str]:
    return [candidate.text for candidate in candidates]
