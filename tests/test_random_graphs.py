"""Random graphs, random legal choices: the cut model is valid and computes what it must."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.random_graphs import assert_cut_rightly, random_model, random_token_model

UNHURRIED = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


@settings(UNHURRIED, max_examples=100)
@given(data=st.data())
def test_random_convolutional_graphs_are_cut_rightly(data: st.DataObject) -> None:
    assert_cut_rightly(random_model(data), data.draw(st.integers(0, 99)))


@settings(UNHURRIED, max_examples=70)
@given(data=st.data())
def test_random_token_graphs_are_cut_rightly(data: st.DataObject) -> None:
    assert_cut_rightly(random_token_model(data), data.draw(st.integers(0, 99)))
