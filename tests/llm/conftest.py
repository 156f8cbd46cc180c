"""The fixtures of ``tiny`` where ``prefenv[llm]`` is installed; elsewhere this folder is left out."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

try:
    from tests.llm.tiny import (  # noqa: F401
        language_model,
        make_tiny,
        one_thread,
        prompt_file,
        shared_world,
        tiny_folder,
        tiny_settings,
        world,
    )
except ModuleNotFoundError:
    collect_ignore_glob = ["*.py"]
