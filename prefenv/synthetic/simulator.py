"""The parts of B simulated worlds side by side, in step: sources, posterior, evaluators.

:mod:`prefenv.synthetic.world` makes the parts of one world of them (B = 1), :mod:`prefenv.vector` runs many.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.random.bit_generator import BitGenerator

from prefenv.evaluation.win_rate import Z_95, chance_to_beat
from prefenv.noise import SEED_WORDS, Words, bit_generator, unit_noise
from prefenv.oracles.bradley_terry import label_chances, label_sign
from prefenv.posteriors.bayesian_linear import LinearBeliefs
from prefenv.posteriors.ensemble import EnsembleBeliefs
from prefenv.posteriors.single import Beliefs
from prefenv.protocols import State
from prefenv.spaces import pair_table
from prefenv.synthetic.policy import LearnerSettings, Policies, PromptResponses, preference_slope
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.synthetic.story import (
    LOG_LENGTH_MEAN,
    LOG_LENGTH_REACH,
    LOG_LENGTH_STD,
    Hidden,
    draw_held_out,
    draw_hidden,
    draw_pairs,
    draw_responses,
    log_softmax,
    noise_size,
    project,
)
from prefenv.types import FloatArray, IntArray

WARM_CHUNK = 64  # warm labels that are drawn together: thousands of all worlds would not fit
CHUNK = 32  # worlds whose held-out prompts are drawn together: their arrays stay in the cache


@dataclass(frozen=True, eq=False)
class Pools:
    """A pool of each of B worlds; float32 where not said otherwise.

    Attributes:
        embedding: (B, n, m, d).
        logprob: (B, n, m) under the policy, nats.
        length: (B, n, m) tokens.
        implicit_reward: (B, n, m) beta * log(policy / reference).
        entropy: (B, n) nats, exact.
        generator: (B, n, m) int64.
        features: (B, n, m, D) hidden.
        reward: (B, n, m) hidden, log-odds.
        responses: what SimPO needs besides.
    """

    embedding: FloatArray
    logprob: FloatArray
    length: FloatArray
    implicit_reward: FloatArray
    entropy: FloatArray
    generator: IntArray
    features: FloatArray
    reward: FloatArray
    responses: PromptResponses


@dataclass(frozen=True, eq=False)
class Evaluations:
    """What one evaluation found in each of B worlds: all (B,) float64, as in :class:`prefenv.types.Evaluation`."""

    win_rate: FloatArray
    low: FloatArray
    high: FloatArray
    second: FloatArray
    capability: FloatArray
    kl: FloatArray
    posterior_accuracy: FloatArray


class Rows:
    """Takes the entries of m of the G responses to each prompt.

    Args:
        index: (B, n, m) int64, response.
        n_responses: G.
    """

    def __init__(self, index: IntArray, n_responses: int) -> None:
        prompts = index.shape[0] * index.shape[1]
        self._shape = index.shape
        self._rows = index.reshape(prompts, -1) + np.arange(0, prompts * n_responses, n_responses)[:, None]

    def __call__(self, array: FloatArray) -> FloatArray:
        """(B, n, m, ...) of (B, n, G, ...)."""
        flat = array.reshape(-1, *array.shape[3:])
        return flat.take(self._rows, axis=0).reshape(*self._shape, *array.shape[3:])


class Sources:
    """New prompts for ever, and the hidden truth of B episodes."""

    def __init__(self, settings: SyntheticSettings, policies: Policies, ahead: int = 1) -> None:
        self._settings, self._policies, self._ahead = settings, policies, ahead

    def reset(self, sources: Sequence[BitGenerator]) -> None:
        """A new hidden truth for each."""
        self.words = Words(sources, self._ahead)
        self.hidden: Hidden = draw_hidden(self._settings, self.words)

    def draw(self) -> Pools:
        """The next n prompts of each."""
        settings, hidden = self._settings, self.hidden
        n, d = settings.n_prompts, settings.embedding_size
        size = noise_size(settings, n)
        noise = unit_noise(self.words, size + n * settings.n_generators)
        responses = draw_responses(settings, hidden, n, noise[:, :size])
        ratio = self._policies.log_ratio(responses.features)
        logprob, log_z = log_softmax(responses.logit + ratio)
        generator = self._choose(logprob, noise[:, size:].reshape(logprob.shape))
        take = Rows(generator, settings.n_generators)
        features = take(responses.features)
        length = project(features, hidden.length)
        length *= np.float32(LOG_LENGTH_STD)
        relative_length = np.exp(np.clip(length, -LOG_LENGTH_REACH, LOG_LENGTH_REACH))
        implicit = take(ratio)
        implicit -= log_z - log_softmax(responses.logit)[1]
        implicit *= np.float32(settings.beta)
        reward = project(features, hidden.reward)
        reward *= np.float32(settings.reward_scale)
        return Pools(
            embedding=features[..., :d].copy(),
            logprob=take(logprob),
            length=relative_length * np.float32(np.exp(LOG_LENGTH_MEAN)),
            implicit_reward=implicit,
            entropy=np.maximum(-np.einsum("bng,bng->bn", np.exp(logprob), logprob), np.float32(0.0)),
            generator=generator,
            features=features,
            reward=reward,
            responses=PromptResponses(responses.features, responses.logit, generator, relative_length),
        )

    def _choose(self, logprob: FloatArray, noise: FloatArray) -> IntArray:
        """(B, n, m) generators: from the policy without replacement, or any m alike, in random order."""
        if self._settings.on_policy:  # Gumbel noise and the m largest
            share = np.clip(noise / np.float32(np.sqrt(12)) + np.float32(0.5), 2.0**-17, 1 - 2.0**-17)
            noise = logprob - np.log(-np.log(share))
        return np.argsort(-noise, axis=-1)[..., : self._settings.n_candidates]

    def state_dict(self) -> State:
        """Hidden truth and generators."""
        return {"hidden": copy.deepcopy(self.hidden), "words": self.words.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        self.hidden = copy.deepcopy(state["hidden"])
        self.words.load_state_dict(state["words"])


class Evaluators:
    """Exact expectations over the policies on held-out prompts.

    The reference does not move, so each response's chance to beat it is worked out once an episode; then a win rate is
    a softmax and a dot product. Responses are (G, E), so that sums over a prompt's responses run over whole rows.
    """

    def __init__(self, settings: SyntheticSettings, policies: Policies, sources: Sources) -> None:
        self._settings, self._policies, self._sources = settings, policies, sources
        g, e, d = settings.n_generators, settings.n_eval_prompts, settings.embedding_size
        b = policies.n_worlds

        def array(*shape: int) -> FloatArray:
            return np.zeros((b, *shape), dtype=np.float32)

        self._features, self._reference, self._beats = array(d + 1, g * e), array(g, e), array(g, e)
        self._totals = array(2, g * e)  # chances to beat by the second judge, and capability less the reference's
        self._pair_embedding, self._pair_truth = array(2, e, d), array(e)
        self._ratio, self._prob = array(g, e), array(g, e)

    def reset(self, sources: Sequence[BitGenerator]) -> None:
        """New held-out prompts. The sources must have been reset before, for they make the hidden truth."""
        for start in range(0, len(sources), CHUNK):
            self._fill(slice(start, start + CHUNK), sources[start : start + CHUNK])

    def _fill(self, worlds: slice, sources: Sequence[BitGenerator]) -> None:
        settings, hidden = self._settings, self._sources.hidden[worlds]
        e, g, b = settings.n_eval_prompts, settings.n_generators, len(sources)
        size, pairs = noise_size(settings, e), 2 * e * (settings.embedding_size + 1)
        noise = unit_noise(Words(sources), size + pairs)
        features, logit = draw_held_out(settings, hidden, e, noise[:, :size])
        self._features[worlds] = features
        logit -= logit.max(axis=1, keepdims=True)
        logit -= np.log(np.exp(logit).sum(axis=1, keepdims=True))
        self._reference[worlds] = logit
        bias = np.float32(settings.length_bias) * hidden.length + np.float32(settings.style_bias) * hidden.taste
        scale = np.float32(settings.reward_scale)
        directions = np.stack([scale * hidden.reward, scale * hidden.reward + bias, hidden.capability], axis=1)
        reward, second, capability = (directions @ features).reshape(b, 3, g, e).swapaxes(0, 1)
        prob = np.exp(logit)
        judges = np.stack([reward, second], axis=1)
        beats = chance_to_beat(judges, prob[:, None], settings.oracle_temperature, axis=2)
        self._beats[worlds] = beats[:, 0]
        totals = self._totals[worlds].reshape(b, 2, g, e)
        totals[:, 0] = beats[:, 1]
        totals[:, 1] = capability - (prob * capability).sum(axis=1, keepdims=True)
        totals /= np.float32(e)
        self._hold_out_pairs(worlds, hidden, noise[:, size:])

    def _hold_out_pairs(self, worlds: slice, hidden: Hidden, noise: FloatArray) -> None:
        """A pair of responses to each of E more prompts, going round through all pairs of different generators."""
        sides = np.stack(pair_table(self._settings.n_generators))
        generator = sides[:, np.arange(self._settings.n_eval_prompts) % sides.shape[1]]
        noise = noise.reshape(len(noise), *generator.shape, -1)
        features = draw_pairs(hidden, np.broadcast_to(generator, noise.shape[:-1]), noise)
        self._pair_embedding[worlds] = features[..., :-1]
        reward = project(features, hidden.reward) * np.float32(self._settings.reward_scale)
        self._pair_truth[worlds] = np.sign(reward[:, 0] - reward[:, 1])

    def evaluate(self, mean: Callable[[FloatArray], FloatArray]) -> Evaluations:
        """Exact win rates, capability less the reference's (in standard deviations of a response), exact KL.

        Args:
            mean: of the posterior, for (B, 2, E, d) embeddings.
        """
        prob, kl = self._policy()
        wins = np.multiply(prob, self._beats, out=self._ratio).sum(axis=1)
        b, e = wins.shape
        rate = wins.mean(axis=1, dtype=np.float64).clip(0.0, 1.0)
        spread = wins - rate.astype(np.float32)[:, None]
        half = Z_95 / np.sqrt(e * max(e - 1, 1)) * np.sqrt(np.einsum("be,be->b", spread, spread).astype(np.float64))
        second, capability = np.matmul(self._totals, prob.reshape(b, -1, 1))[..., 0].T.astype(np.float64)
        return Evaluations(
            win_rate=rate,
            low=np.maximum(rate - half, 0.0),
            high=np.minimum(rate + half, 1.0),
            second=second.clip(0.0, 1.0),
            capability=capability,
            kl=kl,
            posterior_accuracy=self._accuracy(mean),
        )

    def win_rate(self) -> FloatArray:
        """(B,) float64, as in :meth:`evaluate`, which has the rest besides."""
        prob, _ = self._policy()
        wins = np.multiply(prob, self._beats, out=self._ratio).sum(axis=1)
        return np.asarray(wins.mean(axis=1, dtype=np.float64).clip(0.0, 1.0))

    def _policy(self) -> tuple[FloatArray, FloatArray]:
        """Probability (B, G, E) of every response, in a buffer, and KL (B,) to the reference."""
        ratio, prob = self._ratio, self._prob
        b, _, e = ratio.shape
        theta = self._policies.theta.astype(np.float32)
        np.matmul(theta[:, None], self._features, out=ratio.reshape(b, 1, -1))
        np.add(ratio, self._reference, out=prob)
        top = prob.max(axis=1, keepdims=True)
        prob -= top
        np.subtract(prob, self._reference, out=ratio)  # from the top on, so that large ratios do not cancel
        np.exp(prob, out=prob)
        total = prob.sum(axis=1, keepdims=True)
        prob /= total
        log_z = np.log(total).mean(axis=(1, 2), dtype=np.float64)
        mean_ratio = np.einsum("bk,bk->b", prob.reshape(b, -1), ratio.reshape(b, -1)).astype(np.float64) / e
        return prob, np.maximum(mean_ratio - log_z, 0.0)

    def _accuracy(self, mean: Callable[[FloatArray], FloatArray]) -> FloatArray:
        """(B,) share of the held-out pairs that are ranked right; equal means count one half."""
        believed = mean(self._pair_embedding)
        agrees = np.sign(believed[:, 0] - believed[:, 1]) * self._pair_truth
        return np.asarray(0.5 + 0.5 * agrees.mean(axis=1, dtype=np.float64))

    def win_rate_gradient(self) -> FloatArray:
        """(B, D) derivative of the win rates in the policies' theta: mean over prompts of Cov(b(y), f(y))."""
        prob, _ = self._policy()
        b, _, e = prob.shape
        wins = (prob * self._beats).sum(axis=1, keepdims=True)
        centred = (prob * (self._beats - wins)).reshape(b, -1, 1)
        return np.asarray(np.matmul(self._features, centred)[..., 0] / np.float32(e))

    def state_dict(self) -> State:
        """The held-out prompts and what was worked out for them."""
        return {name: getattr(self, f"_{name}").copy() for name in _HELD_OUT}

    def load_state_dict(self, state: State) -> None:
        """Restore."""
        for name in _HELD_OUT:
            getattr(self, f"_{name}")[...] = state[name]


_HELD_OUT = ("features", "reference", "beats", "totals", "pair_embedding", "pair_truth")


class GainSettings(LearnerSettings, Protocol):
    """What the expected gain needs to know besides."""

    @property
    def oracle_temperature(self) -> float:
        """Noise of the labels."""

    @property
    def oracle_tie(self) -> float:
        """Lead that a label needs."""

    @property
    def oracle_flip(self) -> float:
        """Chance that a label is turned round."""


def expected_gain(
    settings: GainSettings, features: FloatArray, reward: FloatArray, theta: FloatArray, gradient: FloatArray
) -> FloatArray:
    """(B, n, P): first-order gain in win rate that each pair's label is expected to bring, up to a common factor.

    With p and p' the chances that i and j are preferred and h the log-ratio of i to the reference less that of j, a
    gradient step of the loss moves theta along ``f_i - f_j`` by ``-p slope(h) + p' slope(-h)`` on average; the win rate
    follows by its gradient. SimPO's gradient is taken as that of its likeness without reference and lengths, DPO.

    Args:
        settings: of the simulator.
        features: (B, n, m, D) of the pool.
        reward: (B, n, m).
        theta: (B, D) of the policies.
        gradient: (B, D) of the win rates in theta.
    """
    first, second = pair_table(features.shape[2])
    loss = "dpo" if settings.loss == "simpo" else settings.loss

    def gap(values: FloatArray) -> FloatArray:
        return np.asarray(values[..., first] - values[..., second], dtype=np.float64)

    x = gap(reward)
    wins, losses = label_chances(x, settings.oracle_temperature, settings.oracle_tie, settings.oracle_flip)
    h = gap(project(features, theta.astype(np.float32)))
    step = losses * preference_slope(loss, -h, settings.beta) - wins * preference_slope(loss, h, settings.beta)
    return np.asarray(step * gap(project(features, gradient)))


def start_beliefs(
    settings: SyntheticSettings, hidden: Hidden, sources: Sequence[BitGenerator], beliefs: Beliefs
) -> None:
    """Put beliefs back to where an episode starts: the prior, or what ``warm_labels`` labels make of it."""
    words = (
        Words([bit_generator(source.random_raw(SEED_WORDS)) for source in sources]) if settings.warm_labels else None
    )
    beliefs.reset(sources)
    if words is not None:
        for start in range(0, settings.warm_labels, WARM_CHUNK):
            _warm(settings, hidden, words, beliefs, min(WARM_CHUNK, settings.warm_labels - start))


def _warm(settings: SyntheticSettings, hidden: Hidden, words: Words, beliefs: Beliefs, w: int) -> None:
    """Teach w labels of pairs of different generators drawn alike, on prompts of their own."""
    b, size = len(hidden.reward), settings.embedding_size + 1
    noise = unit_noise(words, w * (2 * size + 3)).reshape(b, w, 2 * size + 3)
    share = np.clip(noise[..., -3:] / np.float32(np.sqrt(12)) + np.float32(0.5), 0.0, 1 - 2.0**-17)
    first = (share[..., 0] * settings.n_generators).astype(np.int64)
    other = (share[..., 1] * max(settings.n_generators - 1, 1)).astype(np.int64)
    pair = np.stack([first, other + (other >= first)], axis=-1)  # (B, w, 2)
    features = draw_pairs(hidden, pair, noise[..., : 2 * size].reshape(b, w, 2, size))
    reward = project(features, hidden.reward) * np.float32(settings.reward_scale)  # in float32, as the oracle's
    gap = reward[..., 0].astype(np.float64) - reward[..., 1]
    sign = label_sign(gap, share[..., 2], settings.oracle_temperature, settings.oracle_tie, settings.oracle_flip)
    chosen, rejected = (np.where(sign[..., None] == s, features[..., 0, :-1], features[..., 1, :-1]) for s in (1, -1))
    beliefs.absorb(chosen, rejected)  # of a tie both are the second


def make_beliefs(settings: SyntheticSettings, n_worlds: int, ahead: int = 1) -> Beliefs:
    """The kind of posterior that the settings name."""
    kind = EnsembleBeliefs if settings.posterior == "ensemble" else LinearBeliefs
    return kind(n_worlds, settings.embedding_size, settings.n_samples, settings.prior_std, ahead)
