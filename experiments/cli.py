"""The command ``prefenv``."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from typing import Annotated

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads: threads that spin starve a shared machine
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy loads: its products here are too small to share

import tyro

import agents
import prefenv
from experiments.acquire import AcquireConfig, acquire
from experiments.calibrate import CalibrateConfig, calibrate
from experiments.compare import CompareConfig, compare
from experiments.explain import ExplainConfig, explain
from experiments.methods import MethodsConfig, methods
from experiments.pools_embed import PoolsEmbedConfig, embed_pools
from experiments.pools_import import ImportCommand, ImportConfig, pools_import
from experiments.train import TrainConfig, train


@dataclass(frozen=True)
class AgentsConfig:
    """List the agents: key, family, judged responses for each prompt, what it does, source, settings."""


@dataclass(frozen=True)
class WorldsConfig:
    """List the worlds: key, what it is, source."""


Pools = (
    Annotated[ImportCommand, tyro.conf.subcommand("import", description="Import a table from what others published.")]
    | Annotated[PoolsEmbedConfig, tyro.conf.subcommand("embed")]
)
Command = (
    Annotated[CompareConfig, tyro.conf.subcommand("compare")]
    | Annotated[TrainConfig, tyro.conf.subcommand("train")]
    | Annotated[CalibrateConfig, tyro.conf.subcommand("calibrate")]
    | Annotated[AcquireConfig, tyro.conf.subcommand("acquire")]
    | Annotated[Pools, tyro.conf.subcommand("pools", description="Make tables of candidates.")]
    | Annotated[MethodsConfig, tyro.conf.subcommand("methods")]
    | Annotated[ExplainConfig, tyro.conf.subcommand("explain")]
    | Annotated[AgentsConfig, tyro.conf.subcommand("agents")]
    | Annotated[WorldsConfig, tyro.conf.subcommand("worlds")]
)


def _list_agents() -> None:
    for key, spec in agents.AGENTS.items():
        names = ", ".join((key, *spec.aliases))
        privileged = " [privileged]" if spec.privileged else ""
        settings = ", ".join(f"{name}={default}" for name, default in spec.settings().items())
        print(
            f"{names:28} {spec.family:15} judged {spec.judged} {spec.summary}{privileged} ({spec.source})"
            + (f"; settings: {settings}" if settings else "")
        )


def _list_worlds() -> None:
    for key, spec in prefenv.WORLDS.items():
        print(f"{key:22} {spec.summary} ({spec.source})")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 when all went well, 1 when a run failed, 2 when what was asked for cannot be."""
    logging.basicConfig(level=logging.WARNING)
    config = tyro.cli(
        Command,  # type: ignore[arg-type]  # a union of dataclasses is what it takes
        prog="prefenv",
        description="Which pairs of responses are worth having labelled? Compare and train acquisition policies.",
        args=arguments,
    )
    try:
        if isinstance(config, CompareConfig):
            return compare(config)
        if isinstance(config, CalibrateConfig):
            return calibrate(config)
        if isinstance(config, AcquireConfig):
            return acquire(config)
        if isinstance(config, ImportConfig):
            return pools_import(config)
        if isinstance(config, PoolsEmbedConfig):
            return embed_pools(config)
        if isinstance(config, MethodsConfig):
            return methods(config)
        if isinstance(config, ExplainConfig):
            return explain(config)
        if isinstance(config, TrainConfig):
            weights = train(config)
            print(f"weights: {weights}\ncompare: prefenv compare --agents random ppo --ppo-weights {weights}")
        elif isinstance(config, AgentsConfig):
            _list_agents()
        else:
            _list_worlds()
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
