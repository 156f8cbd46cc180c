"""Worlds over tables of real prompts, candidates and judge scores. Nothing is here yet."""
