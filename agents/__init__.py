"""Who chooses the pairs: methods that see observations only."""

from agents.registry import AGENTS, AgentSpec, keys, make, recipe, spec

__all__ = ["AGENTS", "AgentSpec", "keys", "make", "recipe", "spec"]
