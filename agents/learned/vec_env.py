"""A gymnasium vector environment as Stable-Baselines3 wants it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

Transform = Callable[[Any], Any]


class SB3VecEnv(VecEnv):
    """Wraps a vector environment whose episodes all end at the same step, as those of ``PrefAcquire-v0`` do.

    SB3 wants the first observation of the next episode in the step that ends one, gymnasium's NEXT_STEP gives it one
    step later; since all end together, that extra step is taken at once. ``infos`` hold, at the end of an episode,
    ``terminal_observation``, ``episode`` (return, length, seconds, as SB3's Monitor) and the numbers of ``info``.

    Args:
        envs: the vector environment.
        observe: what is made of a batch of observations; they are handed on as they are when None.
        observation_space: of one environment, after ``observe``.

    Raises:
        ValueError: the environment does not reset by NEXT_STEP.

    Example:
        >>> import gymnasium as gym, prefenv
        >>> SB3VecEnv(gym.make_vec("PrefAcquire-v0", num_envs=3)).reset()["reward_mean"].shape
        (3, 8, 4)
    """

    def __init__(
        self, envs: VectorEnv, observe: Transform | None = None, observation_space: gym.Space | None = None
    ) -> None:
        if envs.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
            raise ValueError(f"{envs} must reset its environments in the step after an episode's last (NEXT_STEP)")
        self.envs, self._observe = envs, observe or (lambda observation: observation)
        self.render_mode = None
        super().__init__(envs.num_envs, observation_space or envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Any:
        """First observations; seeds given by ``seed`` are used once."""
        seeds = self._seeds if any(seed is not None for seed in self._seeds) else None
        observation, info = self.envs.reset(seed=seeds)  # type: ignore[arg-type]  # a list is what vector environments take
        self.reset_infos = self._rows(info)
        self._reset_seeds()
        self._reset_options()
        self._begin()
        return self._observe(observation)

    def _begin(self) -> None:
        self._returns, self._length, self._started = np.zeros(self.num_envs), 0, time.time()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Step, and begin the next episodes where these have ended.

        Raises:
            RuntimeError: some episodes ended and others did not.
        """
        observation, rewards, terminated, truncated, info = self.envs.step(self._actions)
        self._returns += rewards
        self._length += 1
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        shown = self._observe(observation)
        if dones.any():
            if not dones.all():
                raise RuntimeError("episodes ended at different steps: this adapter is for environments in step")
            infos = self._rows(info)
            for b, row in enumerate(infos):
                row["terminal_observation"] = _row(shown, b)
                row["TimeLimit.truncated"] = bool(truncated[b] and not terminated[b])
                row["episode"] = {"r": self._returns[b], "l": self._length, "t": time.time() - self._started}
            self._begin()
            observation, _, _, _, info = self.envs.step(self._actions)
            self.reset_infos = self._rows(info)
            shown = self._observe(observation)
        return shown, rewards.astype(np.float32), dones, infos

    def _rows(self, info: dict[str, Any]) -> list[dict[str, Any]]:
        """The numbers of ``info``, a dict for each environment."""
        names = [name for name, value in info.items() if not name.startswith("_") and np.ndim(value) == 1]
        columns = {name: info[name].tolist() for name in names if info[name].dtype != object}
        there = {name: info.get(f"_{name}", np.ones(self.num_envs, dtype=np.bool_)) for name in columns}
        return [{name: column[b] for name, column in columns.items() if there[name][b]} for b in range(self.num_envs)]

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """The vector environment's attribute, once for each environment asked for; spaces are those of one.

        Raises:
            AttributeError: neither the vector environment nor its members have it.
        """
        name = f"single_{attr_name}" if attr_name in ("action_space", "observation_space") else attr_name
        vector = self.envs.unwrapped
        if isinstance(vector, SyncVectorEnv) and not hasattr(vector, name):
            each = vector.get_attr(name)
            return [each[index] for index in self._get_indices(indices)]
        value = getattr(vector, name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Not offered: the environments share their attributes."""
        raise NotImplementedError("the environments of a vector share their attributes: make it with other arguments")

    def env_method(
        self, method_name: str, *method_args: Any, indices: int | Iterable[int] | None = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the vector environment that answers with a row for each, or that of each of its members."""
        vector = self.envs.unwrapped
        each = not hasattr(vector, method_name) and isinstance(vector, SyncVectorEnv)
        method = partial(vector.call, method_name) if each else getattr(vector, method_name)  # type: ignore[attr-defined]
        rows: Sequence[Any] = method(*method_args, **method_kwargs)
        return [rows[index] for index in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: int | Iterable[int] | None = None) -> list[bool]:
        """Whether infos are those of a wrapper: only of SB3's Monitor."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


def _row(observation: Any, b: int) -> Any:
    return {name: value[b] for name, value in observation.items()} if isinstance(observation, dict) else observation[b]
