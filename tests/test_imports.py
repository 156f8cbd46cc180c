"""The edges of the import graph, and what may be absent."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "trl", "vllm", "peft", "datasets", "accelerate", "stable_baselines3", "sb3_contrib"}


def modules(package):
    return sorted((ROOT / package).rglob("*.py"))


def imported(path):
    """Dotted names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def inside(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("path", modules("prefenv") + modules("agents"), ids=str)
def test_nobody_imports_experiments(path):
    assert not [name for name in imported(path) if inside(name, ["experiments"])]


@pytest.mark.parametrize("path", modules("agents"), ids=str)
def test_agents_see_types_and_spaces_only(path):
    ours = [name for name in imported(path) if inside(name, ["prefenv"]) and name != "prefenv"]
    assert [name for name in ours if not inside(name, ["prefenv.types", "prefenv.spaces"])] == []


@pytest.mark.parametrize("path", modules("prefenv"), ids=str)
def test_the_environment_does_not_know_agents(path):
    assert not [name for name in imported(path) if inside(name, ["agents"])]


@pytest.mark.parametrize("path", [p for p in modules("prefenv") if "llm" not in p.parts], ids=str)
def test_only_llm_imports_torch(path):
    assert not [name for name in imported(path) if inside(name, HEAVY)]


def test_parts_do_not_import_the_environment():
    for path in modules("prefenv"):
        if path.parent.name != "prefenv":
            assert not [name for name in imported(path) if inside(name, ["prefenv.env", "prefenv.worlds"])], path


def test_types_and_protocols_come_first():
    allowed = {
        "types.py": [],
        "noise.py": ["prefenv.types"],
        "protocols.py": ["prefenv.types", "prefenv.noise"],
        "spaces.py": ["prefenv.types"],
    }
    for name, below in allowed.items():
        ours = [n for n in imported(ROOT / "prefenv" / name) if inside(n, ["prefenv"])]
        assert [n for n in ours if not inside(n, below)] == []


ABSENT = HEAVY | {"pyarrow", "gguf", "vaderSentiment", "tensorboard"}  # what only extras bring
BLOCKED = f"""
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {sorted(ABSENT)}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

sys.meta_path.insert(0, Absent())
"""


def run(code):
    return subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_environment_agents_and_command_line_work_without_extras():
    result = run(
        "import gymnasium as gym, prefenv, agents, experiments.cli\n"
        "env = gym.make('PrefAcquire-v0')\n"
        "observation, _ = env.reset(seed=0)\n"
        "env.step(agents.make('drts', seed=0).predict(observation)[0])\n"
        "env.step(agents.make('learned', seed=0).predict(observation)[0])\n"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("import prefenv; prefenv.make_world('llm')", "prefenv[llm]"),
        ("import prefenv; prefenv.make_world('replay', pools='x')", "prefenv[replay]"),
        ("from experiments.pools_embed import *; embed_pools(PoolsEmbedConfig(Path('x')))", "prefenv[replay]"),
        ("from experiments.pools_import import *; pools_import(ImportAlpacaEval(source=Path('x')))", "prefenv[replay]"),
        ("from experiments.train import *; train(TrainConfig(out=Path('unused')))", "prefenv[rl]"),
    ],
)
def test_absent_packages_name_their_extra(code, extra):
    result = run(code)
    assert result.returncode != 0
    assert extra in result.stderr.splitlines()[-1]
