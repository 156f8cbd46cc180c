"""The live language model world: the only folder that imports torch, transformers, trl and peft.

Nothing is imported here. ``settings`` and ``prompts`` are light; every other module needs ``pip install "prefenv[llm]"``.
"""
