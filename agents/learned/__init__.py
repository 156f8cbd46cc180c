"""Agents trained by reinforcement learning. Training needs the extra ``rl``; choosing does not."""

TRAINING_SEEDS = 1_000_000_000  # training worlds are seeded from here on, compared worlds below
SEEDS_A_RUN = 10_000_000  # that a training may use: trainings with different seeds share no world
VALIDATION_SEEDS = 3_000_000_000  # and those that a training is watched on from here on
