import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefenv import spaces
from prefenv.types import Belief, Pairs, Preferences, Seconds, WinRate, unknown_name
from tests.conftest import make_pool


@given(st.integers(2, 40))
def test_pair_index_inverts_the_table(m):
    first, second = spaces.pair_table(m)
    assert len(first) == spaces.n_pairs(m)
    np.testing.assert_array_equal(spaces.pair_index(first, second, m), np.arange(len(first)))
    np.testing.assert_array_equal(spaces.pair_index(second, first, m), np.arange(len(first)))


def test_no_pair_of_one_candidate_or_with_itself():
    with pytest.raises(ValueError, match="m=1"):
        spaces.pair_table(1)
    with pytest.raises(ValueError, match="two different"):
        spaces.pair_index(2, 2, 4)


def test_pair_mask_by_hand():
    assert spaces.pair_mask(np.array([[1, 0, 1]])).tolist() == [[False, True, False]]


def test_pair_of_equal_or_disordered_candidates_is_refused():
    one = np.array([1])
    with pytest.raises(ValueError, match="first < second"):
        Pairs(one, one, one)
    with pytest.raises(ValueError, match="itself"):
        Preferences(one, one, one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": np.array([[True, False, False], [True, True, True]])}, "at least two"),
        ({"prompt_id": np.array([4, 4])}, "twice"),
        ({"entropy": np.array([0.0, np.nan], dtype=np.float32)}, "entropy holds NaN"),
        ({"length": np.zeros((2, 2), dtype=np.float32)}, r"length has shape \(2, 2\)"),
        ({"mask": np.ones((2, 3))}, "mask must be bool"),
    ],
)
def test_a_pool_checks_itself(change, message):
    pool = make_pool(np.ones((2, 3), dtype=bool), np.random.default_rng(0))
    values = {name: getattr(pool, name) for name in pool.__dataclass_fields__} | change
    with pytest.raises(ValueError, match=message):
        type(pool)(**values)


def test_belief_and_win_rate_check_themselves():
    zeros = np.zeros((2, 2), dtype=np.float32)
    with pytest.raises(ValueError, match="negative"):
        Belief(zeros, zeros - 1, np.zeros((3, 2, 2), dtype=np.float32))
    with pytest.raises(ValueError, match="not a win rate"):
        WinRate(0.5, 0.6, 0.7, 10)


def test_seconds_are_no_part_of_what_happened():
    assert Seconds(draw=1.0) == Seconds(draw=2.0)


def test_unknown_name_without_a_close_one_lists_all():
    assert str(unknown_name("world", "zzz", ["b", "a"])) == "unknown world 'zzz': There are: a, b"
