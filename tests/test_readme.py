"""The README's Python runs as it stands, in one session."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run(capsys):
    pytest.importorskip("stable_baselines3")
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 3
    exec("\n".join(blocks), {})
    printed = capsys.readouterr().out
    assert printed.startswith("(8, 4) MultiDiscrete([6 6 6 6 6 6 6 6])\n80 0.")
    assert printed.count("gain in win rate") == 2


def test_nothing_is_left_open_and_what_it_shows_is_there():
    assert "@@" not in README
    folder = Path(__file__).parent.parent
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (folder / link).exists(), link


def test_every_agent_and_world_is_listed():
    import agents
    import prefenv

    listed = {
        name
        for cell in re.findall(r"^\| (`.*?) \|", README, flags=re.MULTILINE)
        for name in re.findall("`(.*?)`", cell)
    }
    assert listed >= {*agents.keys(), *prefenv.WORLDS}
    for key, spec in agents.AGENTS.items():
        assert (f"| `{key}` (privileged)" in README) == spec.privileged


def test_commands_of_the_readme_are_those_of_the_makefile():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    compare = re.search(r"prefenv (compare .*) --out", makefile).group(1)
    assert f".venv/bin/prefenv {compare} --out runs/demo" in README
    for extras in re.findall(r"'(\.\[.*?\])'", makefile):
        assert f"'{extras}'" in README
