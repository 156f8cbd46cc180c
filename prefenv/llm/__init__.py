"""The live language model world: the only folder that imports torch, transformers, trl and peft.

Nothing is imported here. ``settings`` and ``prompts`` are light; the other modules need
``pip install "prefenv[llm]"``.
"""
