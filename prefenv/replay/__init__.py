"""Real prompts, responses and judge scores from a table."""
