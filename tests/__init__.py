import pytest

pytest.register_assert_rewrite("tests.world_contract")
