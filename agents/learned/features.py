"""What a learned agent sees of a pair: numbers that mean the same in every world and for every n, m, d."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from agents.scores import Observation
from prefenv.spaces import n_pairs, pair_mask, pair_table

Float = NDArray[np.float32]

ODD = (
    "reward", "generator", "implicit reward", "log-probability", "log-length", "chance to be the best",
    "chance to be the worst", "gradient", "gradient by generator", "gradient, all alike",
)  # fmt: skip
"""First less second candidate: these change sign when the two change places."""
EVEN = (
    "sum of the rewards", "sum of the generators", "sum of the implicit rewards", "sum of the log-probabilities",
    "sum of the log-lengths", "chance that one is the best", "chance that one is the worst",
    "spread of the reward difference", "sum of the reward deviations", "difference of the reward deviations",
    "expected gain", "expected gain, generators as a hint", "expected gain, all alike", "distance of the embeddings",
    "entropy of the prompt", "budget left", "confidence", "reward follows generator", "reward follows implicit reward",
    "reward follows log-probability", "concentration of the policy", "generators differ",
)  # fmt: skip
"""The same in either order. The last seven belong to the whole pool."""
FEATURES = (*ODD, *EVEN, "legal")
N_SUMS = 7  # of the odd ones there is a sum too, for the first so many
READ = {
    "mask", "embedding", "reward_mean", "reward_std", "reward_samples", "logprob", "length", "implicit_reward",
    "entropy", "generator", "budget", "selected",
}  # fmt: skip

CLIP = 5.0  # of every feature; one wild candidate must not drown the rest
MOST_SPREAD = 3.0  # nats; log-probabilities of long texts differ by more, and would leave a policy of one candidate
BLOCK = 2**17  # numbers of the largest array of the pools that are worked on together: they stay in the cache
HINT = 2.0  # weight of the generators' order beside the belief, in units of what the belief does not know
TINY = 1e-6  # of a spread, beside the largest value that it is the spread of: float32 has no more digits


@dataclass(frozen=True, eq=False)
class _Candidates:
    """What features are made of, of B pools; float32, 0 where the mask is.

    Attributes:
        mask: (B, n, m) bool.
        reward: (B, n, m) posterior mean less its prompt's mean, in units of the rewards' spread within a prompt.
        draws: (B, S, n, m) posterior draws, likewise.
        deviation: (B, n, m) posterior standard deviations, likewise.
        generator: (B, n, m) numbers of the generators, standardised.
        implicit: (B, n, m) implicit reward, standardised.
        logprob: (B, n, m) less its prompt's mean, nats, held to :data:`MOST_SPREAD`.
        length: (B, n, m) log-length, standardised.
        embedding: (B, n, m, d) less its prompt's mean.
    """

    mask: NDArray[np.bool_]
    reward: Float
    draws: Float
    deviation: Float
    generator: Float
    implicit: Float
    logprob: Float
    length: Float
    embedding: Float


def pair_features(observation: Observation) -> Float:
    """(..., n, P, F) float32: the F numbers of :data:`FEATURES` for every pair; zeros where a pair is not legal.

    Nothing changes when rewards, implicit rewards, lengths, generators' numbers or embeddings are measured in other
    units, rewards and log-probabilities are shifted by a constant of the prompt, or embeddings are rotated. Where the
    observation has ``selected``, those pairs are not legal any more.

    Args:
        observation: one, or a batch with leading axes.
    """
    mask = np.asarray(observation["mask"]).astype(bool)
    lead, (n, m) = mask.shape[:-2], mask.shape[-2:]
    pools = {
        name: np.asarray(value).reshape(-1, *np.shape(value)[len(lead) :])
        for name, value in observation.items() if name in READ
    }  # fmt: skip
    b = len(pools["mask"])
    features = np.zeros((b, n, n_pairs(m), len(FEATURES)), dtype=np.float32)
    block = max(BLOCK // (n * m * max(m, pools["reward_samples"].shape[1])), 1)
    for start in range(0, b, block):
        part = slice(start, start + block)
        _fill(features[part], {name: value[part] for name, value in pools.items()})
    return features.reshape(*lead, *features.shape[1:])


def _fill(features: Float, observation: Observation) -> None:
    """Write the features of some pools to (B, n, P, F) zeros."""
    pools = _candidates(observation, observation["mask"].astype(bool))
    legal = pair_mask(pools.mask)
    if "selected" in observation:
        selected = observation["selected"].reshape(legal.shape).astype(bool)
        rest = legal & ~selected
        legal = np.where(rest.any(axis=(1, 2), keepdims=True), rest, legal)  # as the environment: some pair is legal
    policy, alike = _policy(pools.logprob, pools.mask), _policy(np.zeros_like(pools.logprob), pools.mask)
    worth, hint = _squashed(pools.draws), _hint(pools)
    gradient, gradient_alike = (_along_gradient(pools, worth, weight) for weight in (policy, alike))
    hinted = _along_gradient(pools, _squashed(pools.draws + hint[:, None]), policy)
    by_generator = _along_gradient(pools, pools.generator[:, None], policy)[:, 0]
    odd = (
        pools.reward, pools.generator, pools.implicit, pools.logprob, pools.length, _chance_of_extreme(pools, 1.0),
        _chance_of_extreme(pools, -1.0), _in_units(gradient.mean(axis=1), pools.mask),
        _in_units(by_generator, pools.mask), _in_units(gradient_alike.mean(axis=1), pools.mask),
    )  # fmt: skip
    first, second = pair_table(pools.mask.shape[-1])
    one, other = (np.stack([value[..., side] for value in odd], axis=-1) for side in (first, second))
    deviations = pools.deviation[..., first], pools.deviation[..., second]
    variance = _between(pools.draws, pools.draws)
    rest_of_them = (
        np.sqrt(np.maximum(variance[..., first, second], 0.0)),
        deviations[0] + deviations[1],
        np.abs(deviations[0] - deviations[1]),
        _expected_gain(pools, pools.reward, variance, gradient, legal),
        _expected_gain(pools, pools.reward + hint, variance, hinted, legal),
        _expected_gain(pools, pools.reward, variance, gradient_alike, legal),
        _distance(pools, legal),
    )
    k = len(odd)
    features[..., :k] = one - other
    features[..., k : k + N_SUMS] = (one + other)[..., :N_SUMS]
    for place, column in enumerate(rest_of_them, start=k + N_SUMS):
        features[..., place] = column
    features[..., k + N_SUMS + len(rest_of_them) : -1] = _of_the_pool(observation, pools, policy)[:, :, None]
    features[..., -1] = 1.0
    np.clip(features, -CLIP, CLIP, out=features)
    features *= legal[..., None]


def _candidates(observation: Observation, mask: NDArray[np.bool_]) -> _Candidates:
    b, n, m = mask.shape

    def entry(name: str, *shape: int) -> Float:
        return np.asarray(observation[name], dtype=np.float32).reshape(b, *shape)

    reward, deviation = _only(entry("reward_mean", n, m), mask), _only(entry("reward_std", n, m), mask)
    draws = _only(entry("reward_samples", -1, n, m), mask[:, None])
    power = np.maximum(np.maximum(_power(reward), _power(deviation)), _power(draws))
    draws = _centred(_times_power(draws, -power), mask[:, None])
    unit = np.sqrt(_mean_square(draws, mask[:, None]).mean(axis=1))[:, None, None]

    embedding, there = _only(entry("embedding", n, m, -1), mask[..., None]), mask[..., None]
    embedding = _times_power(embedding, -_power(embedding))
    centre = embedding.sum(axis=2, keepdims=True) / np.maximum(there.sum(axis=2, keepdims=True), 1)
    embedding = (embedding - centre) * there
    embedding[np.abs(embedding).max(axis=(1, 2, 3), initial=0.0) <= TINY] = 0.0
    logprob = _centred(entry("logprob", n, m), mask)
    spread = np.sqrt(_mean_square(logprob, mask))[:, None, None]
    return _Candidates(
        mask=mask,
        reward=_over(_centred(_times_power(reward, -power), mask), unit),
        draws=_over(draws, unit[:, None]),
        deviation=_over(_times_power(deviation, -power), unit),
        generator=_standardised(entry("generator", n, m), mask),
        implicit=_standardised(entry("implicit_reward", n, m), mask),
        logprob=logprob * np.minimum(1.0, MOST_SPREAD / np.maximum(spread, TINY), dtype=np.float32),
        length=_standardised(np.log(np.maximum(entry("length", n, m), 1.0)), mask),
        embedding=_times_power(embedding, -_power(embedding)),
    )


def _only(values: Float, mask: NDArray[np.bool_]) -> Float:
    """The values with 0 where the mask is not, whatever stands there."""
    return values if mask.all() else np.where(mask, values, np.float32(0.0))


def _power(values: Float) -> NDArray[np.int32]:
    """(B,) power of two that the largest size in a pool's values is just below: a unit to measure smallness by."""
    return np.frexp(np.abs(values).reshape(len(values), -1).max(axis=1, initial=0.0))[1]


def _times_power(values: Float, power: NDArray[np.int32]) -> Float:
    """Values times 2 to a power (B,): exact, so that nothing but the unit changes."""
    return np.ldexp(values, power.reshape(-1, *(1,) * (values.ndim - 1)))


def _over(values: Float, unit: Float) -> Float:
    """Values in a unit; zeros where that is nothing to speak of beside the size of what it was made of."""
    return np.where(unit > TINY, values / np.maximum(unit, TINY), np.float32(0.0))


def _centred(values: Float, mask: NDArray[np.bool_]) -> Float:
    """(..., n, m) less the mean of the prompt's candidates; padding is 0."""
    count = np.maximum(mask.sum(axis=-1, keepdims=True), 1)
    kept = _only(values, mask)
    return np.asarray((kept - kept.sum(axis=-1, keepdims=True) / count) * mask, dtype=np.float32)


def _mean_square(values: Float, mask: NDArray[np.bool_]) -> Float:
    """(...) over the candidates of (..., n, m), which are 0 at padding."""
    return np.einsum("...nm,...nm->...", values, values) / np.maximum(mask.sum(axis=(-2, -1)), 1).astype(np.float32)


def _standardised(values: Float, mask: NDArray[np.bool_]) -> Float:
    """(B, n, m) less the prompt's mean, in standard deviations of all that."""
    kept = _only(values, mask)
    return _in_units(_centred(_times_power(kept, -_power(kept)), mask), mask)


def _in_units(values: Float, mask: NDArray[np.bool_]) -> Float:
    """(B, n, m) in units of the root of their mean square; zeros where there is no spread to speak of."""
    return _over(values, np.sqrt(_mean_square(values, mask))[:, None, None])


def _gap(values: Float) -> Float:
    """(..., P) first less second, of (..., m)."""
    first, second = pair_table(values.shape[-1])
    return values[..., first] - values[..., second]


def _squashed(values: Float) -> Float:
    """In (-1, 1), as a chance to win depends on a reward."""
    return np.asarray(values / np.sqrt(1.0 + values * values))


def _policy(logprob: Float, mask: NDArray[np.bool_]) -> Float:
    """(B, n, m) probabilities among the candidates shown; 0 at padding."""
    weight = np.exp(logprob - logprob.max(axis=-1, keepdims=True)) * mask
    return np.asarray(weight / np.maximum(weight.sum(axis=-1, keepdims=True), TINY))


def _along_gradient(pools: _Candidates, worth: Float, policy: Float) -> Float:
    """(B, S, n, m): how far each candidate lies along the gradient of the policy's expected worth.

    Of a policy that is log-linear in the embedding, that gradient is the mean over prompts of the covariance of worth
    and embedding under the policy.

    Args:
        pools: for the embeddings.
        worth: (B, S, n, m) of the candidates, in S cases.
        policy: (B, n, m) probabilities.
    """
    b, s, n, m = worth.shape
    pull = policy[:, None] * worth
    pull = pull - policy[:, None] * pull.sum(axis=-1, keepdims=True)
    flat = pools.embedding.reshape(b, n * m, -1)
    return (pull.reshape(b, s, n * m) @ flat @ flat.swapaxes(1, 2)).reshape(b, s, n, m)


def _between(one: Float, other: Float) -> Float:
    """(B, n, m, m) covariance over draws of the gaps that two quantities have between two candidates.

    Args:
        one: (B, S, n, m) draws.
        other: likewise; the same for a variance.
    """
    a = np.ascontiguousarray((one - one.mean(axis=1, keepdims=True)).transpose(0, 2, 3, 1))
    b = a if other is one else np.ascontiguousarray((other - other.mean(axis=1, keepdims=True)).transpose(0, 2, 3, 1))
    cross = a @ b.swapaxes(-1, -2) / np.float32(one.shape[1])
    own = np.einsum("...ii->...i", cross)
    return own[..., :, None] + own[..., None, :] - cross - cross.swapaxes(-1, -2)


def _expected_gain(
    pools: _Candidates, reward: Float, variance: Float, gradient: Float, legal: NDArray[np.bool_]
) -> Float:
    """(B, n, P): expectation of the label times the way that it takes the policy along the gradient.

    With the gap of rewards x ~ N(x̄, v) and the way u jointly normal, ``E[s(x) u] = E[s(x)] ū + E[s'(x)] cov(x, u)``
    (Stein's lemma), where s is as in :func:`_squashed` and ``E[s(x)]`` is taken as ``x̄ / sqrt(1 + x̄² + v)``. In units
    of its root mean square over the pool's legal pairs.

    Args:
        pools: for the draws.
        reward: (B, n, m) its mean.
        variance: (B, n, m, m) v.
        gradient: (B, S, n, m) how far candidates lie along it, a draw each.
        legal: (B, n, P).
    """
    first, second = pair_table(reward.shape[-1])
    x, v, u = _gap(reward), variance[..., first, second], _gap(gradient.mean(axis=1))
    both = _between(pools.draws, gradient)[..., first, second]
    spread = 1.0 + x * x + v
    gain = (x * u + both * (1.0 + v) / spread) / np.sqrt(spread)
    return _in_units(gain * legal, legal)


def _hint(pools: _Candidates) -> Float:
    """(B, n, m) what the generators' order adds to the rewards where the belief knows little."""
    doubt = np.sqrt(_mean_square(pools.draws - pools.reward[:, None], pools.mask[:, None]).mean(axis=1))
    return np.float32(HINT) * doubt[:, None, None] * pools.generator


def _chance_of_extreme(pools: _Candidates, sign: float) -> Float:
    """(B, n, m) share of the draws in which a candidate is its prompt's best (or worst), less a fair share."""
    values = np.where(pools.mask[:, None], sign * pools.draws, -np.inf)
    best = (values == values.max(axis=-1, keepdims=True)) & pools.mask[:, None]
    share = (best / np.maximum(best.sum(axis=-1, keepdims=True, dtype=np.float32), 1)).mean(axis=1, dtype=np.float32)
    return _centred(share, pools.mask)


def _distance(pools: _Candidates, legal: NDArray[np.bool_]) -> Float:
    """(B, n, P) distance of two candidates' embeddings, over the mean distance of the pool's legal pairs."""
    gram = pools.embedding @ pools.embedding.swapaxes(-1, -2)
    first, second = pair_table(pools.mask.shape[-1])
    square = gram[..., first, first] + gram[..., second, second] - 2 * gram[..., first, second]
    distance = np.sqrt(np.maximum(square, 0.0)) * legal
    mean = distance.sum(axis=(1, 2), keepdims=True) / np.maximum(legal.sum(axis=(1, 2), keepdims=True), 1)
    return distance / np.maximum(mean, TINY).astype(np.float32)


def _of_the_pool(observation: Observation, pools: _Candidates, policy: Float) -> Float:
    """(B, n, 8): entropy of the prompt, and seven numbers of the whole pool."""
    b, n, _ = pools.mask.shape
    prompts = np.asarray(pools.mask.any(axis=-1))
    entropy = _standardised(np.asarray(observation["entropy"], dtype=np.float32).reshape(b, 1, n), prompts[:, None])
    reward = pools.reward
    unit = np.sqrt(_mean_square(reward, pools.mask))
    numbers = [
        np.asarray(observation["budget"], dtype=np.float32).reshape(b),
        unit,
        *(_correlation(reward, other, pools.mask) for other in (pools.generator, pools.implicit, pools.logprob)),
        (policy * policy).sum(axis=(1, 2)) / np.maximum(prompts.sum(axis=1), 1),
        _generators_differ(pools),
    ]
    whole = np.stack(numbers, axis=-1).astype(np.float32)
    return np.concatenate([entropy[:, 0, :, None], np.broadcast_to(whole[:, None], (b, n, len(numbers)))], axis=-1)


def _generators_differ(pools: _Candidates) -> Float:
    """(B,) how far the embeddings follow the generators' order: log of a squared length over what chance gives.

    Where all candidates come from one model it is about 0, and their numbers say nothing.
    """
    weighted = pools.generator[..., None] * pools.embedding
    along = weighted.sum(axis=(1, 2))
    chance = np.einsum("bnmd,bnmd->b", weighted, weighted)
    return np.log(np.maximum(np.einsum("bd,bd->b", along, along), TINY) / np.maximum(chance, TINY))


def _correlation(a: Float, b: Float, mask: NDArray[np.bool_]) -> Float:
    """(B,) of (B, n, m) values that are centred within their prompts."""
    size = np.sqrt(_mean_square(a, mask) * _mean_square(b, mask))
    both = np.einsum("bnm,bnm->b", a, b) / np.maximum(mask.sum(axis=(1, 2)), 1)
    return both / np.maximum(size, TINY).astype(np.float32)


def feature_space(observation_space: gym.Space) -> gym.spaces.Box:
    """Of the (n, P, F) pair features of one observation."""
    assert isinstance(observation_space, gym.spaces.Dict)
    n, m = observation_space["mask"].shape or ()
    return gym.spaces.Box(-CLIP, CLIP, shape=(n, n_pairs(m), len(FEATURES)), dtype=np.float32)
