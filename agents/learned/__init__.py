"""Agents trained by reinforcement learning. The modules in here need the extra ``rl``."""
