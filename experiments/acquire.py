"""``prefenv acquire``: a preference set from a table of annotated candidates, ready for TRL."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm import tqdm

import agents
import prefenv
from prefenv.replay.settings import ReplaySettings
from prefenv.types import whole_number

COLUMNS = (
    "prompt", "chosen", "rejected", "score_chosen", "score_rejected", "generator_chosen", "generator_rejected",
    "prompt_id", "round",
)  # fmt: skip
JSONL, PARQUET, CARD = "preferences.jsonl", "preferences.parquet", "README.md"


@dataclass(frozen=True)
class AcquireConfig:
    """Acquire preferences from a table of annotated candidates: an agent chooses the pairs, the table's scores label.

    Writes to --out preferences.jsonl and preferences.parquet (prompt, chosen, rejected as TRL takes them, with scores,
    generators and the round) and a card README.md that says how they were made; `datasets.load_dataset` takes the
    folder. The same command makes the same files; stopped on the way, it leaves none. Prompts held out for the win rate
    are not in them.
    """

    pools: Path
    """The table: a Parquet file, as `prefenv pools import` and `prefenv pools embed` leave it."""
    out: Path
    """Folder for the preference set."""
    agent: str = "drts"
    """Who chooses: one of `prefenv agents`."""
    budget: int = 5000
    """Labels to spend."""
    labels_per_round: int | None = None
    """Labels in a round, anywhere in the pool; without, one for each prompt of it. For agents that choose prompts."""
    seed: int = 0
    """Of the split of the prompts, the labels and the agent."""
    weights: Path | None = None
    """Of a learned agent, from `prefenv train`."""
    push_to_hub: str | None = None
    """Name of a dataset on the Hugging Face hub, USER/NAME, to upload the folder to when it is done."""
    overwrite: bool = False
    """Replace a preference set that is in the folder already."""
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    """Settings of the world: sizes of a pool, the judge, the policy."""


@dataclass(frozen=True)
class Acquired:
    """What came of it.

    Attributes:
        rows: one dict for each label, with :data:`COLUMNS`.
        info: of the last step.
        first_info: of the reset.
        score: column that labelled.
    """

    rows: list[dict[str, Any]]
    info: dict[str, Any]
    first_info: dict[str, Any]
    score: str

    @property
    def pairs(self) -> int:
        """How many of the labels are about different pairs."""
        return len({(row["prompt_id"], *sorted((row["chosen"], row["rejected"]))) for row in self.rows})


def acquire(config: AcquireConfig) -> int:
    """Acquire, write, and upload where asked to.

    Returns:
        0.

    Raises:
        ValueError: an unknown agent, a number that cannot be, a table that cannot serve.
        FileExistsError: the folder holds a preference set.
        FileNotFoundError: no table, no features or no weights.
    """
    whole_number("budget", config.budget)
    spec = agents.spec(config.agent)
    for name in (JSONL, PARQUET, CARD):
        if (config.out / name).exists() and not config.overwrite:
            raise FileExistsError(f"{config.out / name} is there already: name another --out, or pass --overwrite")
    settings = replace(config.replay, pools=str(config.pools))
    world = prefenv.worlds.build_world(settings)
    form: dict[str, Any] = {} if config.labels_per_round is None else {"labels_per_round": config.labels_per_round}
    env = gym.make(
        "PrefAcquireBudget-v0" if form else "PrefAcquire-v0",
        world=world, budget=config.budget, privileged=spec.privileged, recipe=agents.recipe(spec.key), **form,
    )  # fmt: skip
    own = {"weights": str(config.weights)} if config.weights is not None else {}
    agent = agents.make(spec.key, env.action_space, seed=config.seed, **own)
    config.out.mkdir(parents=True, exist_ok=True)  # a folder that cannot be is told now
    acquired = _episode(env, agent, config)
    if not acquired.rows:
        raise ValueError(f"{acquired.info['spent']} labels were spent and none came: every comparison was a tie")
    write(config.out, acquired, card(config, settings, acquired))
    print(f"{len(acquired.rows)} preferences in {config.out}; win rate of the policy that learned from them: "
          f"{acquired.info['win_rate']:.3f}")  # fmt: skip
    if acquired.pairs < len(acquired.rows):
        print(f"{len(acquired.rows) - acquired.pairs} of them are about a pair that was labelled before: "
              f"the budget of {config.budget} is large for this table")  # fmt: skip
    if config.push_to_hub is not None:
        print(f"uploaded: {_upload(config.out, config.push_to_hub)}")
    return 0


def _episode(env: gym.Env, agent: Any, config: AcquireConfig) -> Acquired:
    observation, first = env.reset(seed=config.seed)
    state, start, info, chosen = None, np.ones(1, dtype=bool), first, []
    with tqdm(total=config.budget, unit="label", dynamic_ncols=True) as bar:
        while info["spent"] < config.budget:
            pool, spent = env.unwrapped._pool, info["spent"]  # type: ignore[attr-defined]
            action, state = agent.predict(observation, state, episode_start=start)
            observation, _, _, _, info = env.step(action)
            start = np.zeros(1, dtype=bool)
            told = info["preferences"][info["preferences"][:, 0] >= 0]
            chosen.append((pool.table_rows[told[:, 0], told[:, 1]], pool.table_rows[told[:, 0], told[:, 2]]))
            bar.update(info["spent"] - spent)
            bar.set_postfix_str(f"win rate {info['win_rate']:.3f}")
    rows = list(_rows(env.unwrapped.world, chosen))  # type: ignore[attr-defined]
    return Acquired(rows, info, first, env.unwrapped.world.source.data.score)  # type: ignore[attr-defined]


def _rows(world: prefenv.World, chosen: list[tuple[Any, Any]]) -> Iterator[dict[str, Any]]:
    """The preferences with their texts, in the order in which they were labelled."""
    data = world.source.data  # type: ignore[attr-defined]
    table, score = data.table, data.table.numbers(data.score)
    better, worse = (np.concatenate(side) for side in zip(*chosen, strict=True))
    number = np.repeat(np.arange(1, len(chosen) + 1), [len(pair[0]) for pair in chosen])
    prompt = np.searchsorted(table.start, better, side="right") - 1
    texts = table.texts(np.concatenate([better, worse]))
    for i, (won, lost) in enumerate(zip(better, worse, strict=True)):
        yield dict(
            zip(
                COLUMNS,
                (
                    texts[i][0], texts[i][1], texts[len(better) + i][1], float(score[won]), float(score[lost]),
                    table.generators[table.generator[won]], table.generators[table.generator[lost]],
                    str(table.prompt_id[prompt[i]]), int(number[i]),
                ),
                strict=True,
            )
        )  # fmt: skip


def write(out: Path, acquired: Acquired, card: str) -> None:
    """The files of a preference set, all or none of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".acquire-") as folder:
        part = Path(folder)
        with (part / JSONL).open("w", encoding="utf-8") as file:
            for row in acquired.rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        pq.write_table(pa.Table.from_pylist(acquired.rows), part / PARQUET)
        (part / CARD).write_text(card, encoding="utf-8")
        for name in (JSONL, PARQUET, CARD):
            (out / name).unlink(missing_ok=True)  # those of before must not stand beside some of these
        for name in (CARD, JSONL, PARQUET):
            shutil.move(part / name, out / name)


def card(config: AcquireConfig, settings: ReplaySettings, acquired: Acquired) -> str:
    """How the preference set was made, as the card of a dataset."""
    spec, rows = agents.spec(config.agent), acquired.rows
    plain = vars(ReplaySettings())
    asked = [f"--labels-per-round {config.labels_per_round}"] if config.labels_per_round else []
    asked += [f"--weights {shlex.quote(config.weights.name)}"] if config.weights is not None else []
    asked += [
        f"--replay.{name.replace('_', '-')} {shlex.quote(str(value))}"
        for name, value in vars(settings).items()
        if name != "pools" and value != plain[name]
    ]
    saw = " It saw the oracle's scores." if spec.privileged else ""
    agrees = np.mean([row["score_chosen"] > row["score_rejected"] for row in rows]) if rows else np.nan

    def before_and_after(name: str) -> str:
        return f"{acquired.first_info[name]:.3f}, {acquired.info[name]:.3f}"

    return f"""---
configs:
- config_name: default
  data_files: {PARQUET}
tags:
- preference
- dpo
- trl
- prefenv
---

# {len(rows)} preferences, acquired by `{spec.key}`

Made by prefenv {prefenv.__version__} from the table `{config.pools.name}`:

```sh
prefenv acquire --pools {shlex.quote(config.pools.name)} --agent {spec.key} --budget {config.budget} \\
    {" ".join((f"--seed {config.seed}", *asked, "--out OUT"))}
```

The agent `{spec.key}` chose the pairs: {spec.summary} ({spec.source}).{saw}
The column `{acquired.score}` labelled them.

| | |
|---|---|
| labels spent | {acquired.info["spent"]} |
| preferences | {len(rows)} |
| rounds | {max((row["round"] for row in rows), default=0)} |
| different prompts | {len({row["prompt_id"] for row in rows})} |
| different pairs | {acquired.pairs} |
| prompts kept back for the win rate | {settings.n_eval_prompts} |
| labels that agree with the scores | {agrees:.3f} |
| win rate of a log-linear policy, before and after | {before_and_after("win_rate")} |
| the same, controlled for length | {before_and_after("win_rate_length_controlled")} |

Columns: `prompt`, `chosen`, `rejected` as TRL's `DPOTrainer` takes them; `score_chosen`, `score_rejected` of the table;
`generator_chosen`, `generator_rejected`; `prompt_id` of the table; `round`, from 1.
"""


def _upload(folder: Path, name: str) -> str:
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "uploading needs 'huggingface_hub': pip install 'prefenv[llm]'", name=error.name
        ) from error
    api = HfApi()
    api.create_repo(name, repo_type="dataset", exist_ok=True)
    api.upload_folder(folder_path=str(folder), repo_id=name, repo_type="dataset", allow_patterns=[JSONL, PARQUET, CARD])
    return f"https://huggingface.co/datasets/{name}"
