"""The generative story of the simulator.

An episode has a direction of reward ``w`` (unit length), G generators and a rotation ``Q``, all hidden:

* skill ``s_g ~ N(0, skill_spread²)``; style ``c_g ~ N(0, style_spread² I)``, orthogonal to w;
* hidden features of generator g's response to a prompt: ``f = s_g w + c_g + e``, ``e ~ N(0, I)``, d numbers;
* reward ``r = reward_scale * w · f``;
* embedding ``sqrt(1 - q) Q f + sqrt(q) u``, ``u ~ N(0, I)``, q the misspecification: it shows the reward in part;
* length ``exp(5 + 0.5 v · f)`` tokens, v a random unit vector;
* capability ``a · f``, ``a = -conflict w + sqrt(1 - conflict²) w'`` with w' a unit vector orthogonal to w;
* reference policy: softmax over a prompt's G responses of logits ``N(0, reference_spread²)``.

All responses to a prompt are known, so every expectation over the policy is a sum of G terms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefenv.synthetic.settings import SyntheticSettings
from prefenv.types import FloatArray

LOG_LENGTH_MEAN, LOG_LENGTH_STD = 5.0, 0.5  # median of 148 tokens, most between 60 and 400


@dataclass(frozen=True, eq=False)
class Hidden:
    """What is hidden in an episode.

    Attributes:
        reward_direction: (d,) unit vector w.
        capability_direction: (d,) unit vector a.
        length_direction: (d,) unit vector v.
        rotation: (d, d) orthogonal Q.
        generator_mean: (G, d) mean features of each generator's responses.
    """

    reward_direction: FloatArray
    capability_direction: FloatArray
    length_direction: FloatArray
    rotation: FloatArray
    generator_mean: FloatArray


@dataclass(frozen=True, eq=False)
class Responses:
    """All G responses to E prompts.

    Attributes:
        features: (E, G, d) hidden.
        embedding: (E, G, d).
        reward: (E, G) log-odds.
        length: (E, G) tokens.
        reference_logprob: (E, G) nats, a log-distribution over the last axis.
    """

    features: FloatArray
    embedding: FloatArray
    reward: FloatArray
    length: FloatArray
    reference_logprob: FloatArray


def log_softmax(logits: FloatArray) -> FloatArray:
    """Log of the softmax over the last axis.

    >>> float(log_softmax(np.array([1000.0, 1000.0]))[0]) == float(np.log(0.5))
    True
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def draw_hidden(settings: SyntheticSettings, rng: np.random.Generator) -> Hidden:
    """The hidden side of a new episode."""
    d = settings.embedding_size
    reward, other, length = (v / np.linalg.norm(v) for v in rng.standard_normal((3, d)))
    other = other - (other @ reward) * reward
    norm = np.linalg.norm(other)
    other = other / norm if norm > 1e-9 else other  # d = 1 has no other direction
    conflict = settings.capability_conflict
    skill = settings.skill_spread * rng.standard_normal((settings.n_generators, 1))
    style = settings.style_spread * rng.standard_normal((settings.n_generators, d))
    style = style - (style @ reward)[:, None] * reward
    return Hidden(
        reward_direction=reward,
        capability_direction=-conflict * reward + np.sqrt(1 - conflict**2) * other,
        length_direction=length,
        rotation=np.linalg.qr(rng.standard_normal((d, d)))[0],
        generator_mean=skill * reward + style,
    )


def draw_responses(settings: SyntheticSettings, hidden: Hidden, n: int, rng: np.random.Generator) -> Responses:
    """Every generator's response to n new prompts."""
    shape = (n, settings.n_generators, settings.embedding_size)
    features = hidden.generator_mean + rng.standard_normal(shape)
    noise_share = settings.misspecification
    embedding = np.sqrt(1 - noise_share) * (features @ hidden.rotation)
    embedding += np.sqrt(noise_share) * rng.standard_normal(shape)
    logits = settings.reference_spread * rng.standard_normal(shape[:2])
    return Responses(
        features=features,
        embedding=embedding,
        reward=settings.reward_scale * (features @ hidden.reward_direction),
        length=np.exp(LOG_LENGTH_MEAN + LOG_LENGTH_STD * (features @ hidden.length_direction)),
        reference_logprob=log_softmax(logits),
    )
