r"""The generative story of the simulator.

**An episode** has G generators and a taste, all hidden. With D = d + 1 features, q the misspecification and N(·)
normal:

* reward direction ``w = (sqrt(1 - q) w₁, sqrt(q))``, w₁ a random unit vector of d numbers; so ``|w| = 1``;
* skill ``s_g ~ N(0, skill_spread²)``, sorted, so that generators are numbered from the weakest to the strongest, as a
  public leaderboard would;
* style ``c_g ~ N(0, style_spread² I)``, made orthogonal to w;
* consistency ``k_g = exp(N(0, consistency_spread²))``: how much the generator's responses differ among themselves;
* random unit vectors v (what makes a response long), t (a style that the second judge likes) and a' orthogonal to w.

**A response** of generator g to any prompt:

* features ``f = s_g w + c_g + k_g e``, e of D independent numbers of mean 0 and variance 1 (uniform: they cost a
  tenth of normals, and a sum of several is close to normal);
* reward ``r = reward_scale · w·f``, log-odds;
* the embedding is the first d features. The last one, with the share q of the reward's variance, stays hidden: no
  amount of labels shows it;
* length ``exp(5 + 0.5 v·f)`` tokens (``0.5 v·f`` held to ±20);
* capability ``a·f``, ``a = -conflict · w + sqrt(1 - conflict²) a'``: a second value, partly opposed to the reward,
  which drifts as the policy follows the labels;
* second judge ``r + length_bias · v·f + style_bias · t·f``: a proxy that did not label.

**Labels** of a pair (i, j), with ``x = (r_i - r_j) / oracle_temperature``: i is preferred with ``sig(x -
oracle_tie)``, j with ``sig(-x - oracle_tie)`` (Rao and Kupper 1967; Bradley-Terry when oracle_tie is 0), else it is a
tie and no label; a label is turned round with chance oracle_flip.

**The policy** chooses among the G responses to a prompt, so every expectation over it is a sum of G terms:

* reference ``π₀ = softmax(reference_strength · w·f + reference_spread · z)``, z noise like e;
* policy ``π = softmax(log π₀ + θ·f)``, θ = 0 at the start: its log-ratio to the reference is ``h = θ·f`` and a
  constant of the prompt;
* with chosen y and rejected y', the losses are, each the mean over the labels of a round: DPO ``-log sig(β (h -
  h'))`` (arXiv 2305.18290, eq. 7); IPO ``(h - h' - 1 / (2β))²`` (arXiv 2310.12036, eq. 17); SimPO ``-log sig(β log
  π(y) / l - β log π(y') / l' - γ)`` (arXiv 2405.14734, eq. 6), l the length in units of the median;
* a round takes gradient_steps steps of size learning_rate; IPO's by ``β²`` of it, for which the first step has twice
  the length of DPO's whatever β, and never by more than ``1 / (2 mean |f - f'|²)``, beyond which steps on a square
  diverge.

**A pool** shows n new prompts with m of the G responses each: drawn from the policy without replacement (on_policy),
or from all generators alike.

**The win rate** is the chance that a response of π has more reward than one of π₀, ``mean_x Σ_y π(y) b(y)`` with
``b(y) = Σ_y' π₀(y') sig((r(y) - r(y')) / oracle_temperature)`` a constant of the episode.

**The posterior** over the reward starts from its prior (cold), or has learned before the episode from warm_labels
labels of random pairs of the episode's generators (warm), as a reward model that was trained already.

Arrays have a leading axis B: that many episodes side by side, each with random generators of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from prefenv.noise import Words, normals
from prefenv.synthetic.settings import SyntheticSettings
from prefenv.types import FloatArray, IntArray

LOG_LENGTH_MEAN, LOG_LENGTH_STD = 5.0, 0.5  # median of 148 tokens, most between 60 and 400
LOG_LENGTH_REACH = 20.0  # from the mean, at most: no number overflows however far styles lie apart

Generators = Sequence[np.random.Generator]


@dataclass(frozen=True, eq=False)
class Hidden:
    """What is hidden in B episodes; float32.

    Attributes:
        reward: (B, D) unit vectors w.
        capability: (B, D) unit vectors a.
        length: (B, D) unit vectors v.
        taste: (B, D) unit vectors t.
        generator_mean: (B, G, D) mean features of each generator's responses, the weakest generator first.
        consistency: (B, G) spread of each generator's responses.
    """

    reward: FloatArray
    capability: FloatArray
    length: FloatArray
    taste: FloatArray
    generator_mean: FloatArray
    consistency: FloatArray

    def __getitem__(self, worlds: slice) -> Hidden:
        """Some of the episodes."""
        return Hidden(**{field.name: getattr(self, field.name)[worlds] for field in fields(self)})


@dataclass(frozen=True, eq=False)
class Responses:
    """All G responses to n prompts in B episodes; float32.

    Attributes:
        features: (B, n, G, D).
        logit: (B, n, G) of the reference policy, nats.
    """

    features: FloatArray
    logit: FloatArray


def _unit(vectors: FloatArray) -> FloatArray:
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(norm, 1e-12))


def _without(vectors: FloatArray, direction: FloatArray) -> FloatArray:
    """Vectors (B, ..., D) less their part along unit vectors (B, D)."""
    direction = direction.reshape(len(direction), *(1,) * (vectors.ndim - 2), -1)
    return np.asarray(vectors - (vectors * direction).sum(axis=-1, keepdims=True) * direction)


def draw_hidden(settings: SyntheticSettings, words: Words) -> Hidden:
    """The hidden side of B new episodes."""
    b, g, d = len(words.sources), settings.n_generators, settings.embedding_size
    noise = normals(words, 4 * (d + 1) + g * (d + 3))
    directions, rest = noise[:, : 4 * (d + 1)].reshape(b, 4, d + 1), noise[:, 4 * (d + 1) :]
    share = settings.misspecification
    seen = np.float32(np.sqrt(1 - share)) * _unit(directions[:, 0, :d])
    reward = np.concatenate([seen, np.full((b, 1), np.sqrt(share), dtype=np.float32)], axis=1)
    conflict = settings.capability_conflict
    other = np.float32(np.sqrt(1 - conflict**2)) * _unit(_without(directions[:, 1], reward))
    skill = np.float32(settings.skill_spread) * np.sort(rest[:, :g], axis=1)
    style = np.float32(settings.style_spread) * _without(rest[:, 2 * g :].reshape(b, g, d + 1), reward)
    return Hidden(
        reward=reward,
        capability=other - np.float32(conflict) * reward,
        length=_unit(directions[:, 2]),
        taste=_unit(directions[:, 3]),
        generator_mean=skill[..., None] * reward[:, None] + style,
        consistency=np.exp(np.float32(settings.consistency_spread) * rest[:, g : 2 * g]),
    )


def noise_size(settings: SyntheticSettings, n: int) -> int:
    """Numbers that the responses to n prompts need in an episode."""
    return n * settings.n_generators * (settings.embedding_size + 2)


def draw_responses(settings: SyntheticSettings, hidden: Hidden, n: int, noise: FloatArray) -> Responses:
    """Every generator's response to n new prompts in each of B episodes.

    Args:
        settings: of the simulator.
        hidden: of the B episodes.
        n: prompts.
        noise: (B, noise_size) float32 of mean 0 and variance 1; it is written over.
    """
    b, g, size = hidden.generator_mean.shape
    features: FloatArray = noise[:, : n * g * size].reshape(b, n, g * size)
    if settings.consistency_spread:
        features *= np.repeat(hidden.consistency, size, axis=1)[:, None]
    features += hidden.generator_mean.reshape(b, 1, g * size)
    features = features.reshape(b, n, g, size)
    logit = noise[:, n * g * size : n * g * (size + 1)].reshape(b, n, g)
    logit *= np.float32(settings.reference_spread)
    if settings.reference_strength:
        logit += np.float32(settings.reference_strength) * project(features, hidden.reward)
    return Responses(features, logit)


def draw_pairs(hidden: Hidden, generator: IntArray, noise: FloatArray) -> FloatArray:
    """(B, ..., D) features of responses by these (B, ...) generators to prompts of their own.

    Args:
        hidden: of the B episodes.
        generator: int64.
        noise: (B, ..., D) float32 of mean 0 and variance 1; it is written over.
    """
    b, g, size = hidden.generator_mean.shape
    row = generator + g * np.arange(b).reshape(b, *(1,) * (generator.ndim - 1))
    if np.any(hidden.consistency != 1.0):
        noise *= hidden.consistency.reshape(-1).take(row)[..., None]
    noise += hidden.generator_mean.reshape(-1, size).take(row, axis=0)
    return noise


def draw_held_out(
    settings: SyntheticSettings, hidden: Hidden, n: int, noise: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """As :func:`draw_responses`, with the axes in the order in which an evaluation runs over them.

    Returns:
        features (B, D, G · n), a response after the other in the last axis; logits (B, G, n).
    """
    b, g, size = hidden.generator_mean.shape
    features: FloatArray = noise[:, : n * g * size].reshape(b, size, g, n)
    if settings.consistency_spread:
        features *= hidden.consistency[:, None, :, None]
    features += hidden.generator_mean.swapaxes(1, 2)[..., None]
    features = features.reshape(b, size, g * n)
    logit = noise[:, n * g * size : n * g * (size + 1)].reshape(b, g, n)
    logit *= np.float32(settings.reference_spread)
    if settings.reference_strength:
        strength = np.float32(settings.reference_strength)
        logit += strength * np.matmul(hidden.reward[:, None], features).reshape(b, g, n)
    return features, logit


def project(features: FloatArray, direction: FloatArray) -> FloatArray:
    """(B, ...) products of (B, ..., D) features with (B, D) directions."""
    flat = features.reshape(len(features), -1, features.shape[-1])
    return np.matmul(flat, direction[..., None]).reshape(features.shape[:-1])


def log_softmax(logits: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Log of the softmax over the last axis of (B, n, G) logits, and of the normaliser (B, n, 1).

    >>> float(log_softmax(np.full((1, 1, 2), 1000.0))[0][0, 0, 0].round(6))  # -log 2
    -0.693147
    """
    g = logits.shape[-1]
    top = np.ascontiguousarray(logits.reshape(-1, g).T).max(axis=0).reshape(*logits.shape[:-1], 1)  # a row at a time
    weight = logits - top
    log_z = np.log(np.einsum("bng->bn", np.exp(weight, out=weight)))[..., None] + top
    return logits - log_z, log_z
