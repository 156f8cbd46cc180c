"""Agents trained by reinforcement learning. The modules in here need the extra ``rl``."""

TRAINING_SEEDS = 1_000_000_000  # training worlds are seeded from here on, compared worlds below
