"""Beliefs about the reward, learned from labels."""
