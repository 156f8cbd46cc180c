"""The contract of worlds, on a language model; the fixture `world` is a tiny one."""

from tests.world_contract import *  # noqa: F403  # the tests
