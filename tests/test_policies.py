"""Policies: frozen values whose limits are Modal's own."""

from __future__ import annotations

import json
import math

import attrs
import modal
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalkit import CheckpointPolicy, CommitPolicy, PolicyError, RetryPolicy

POLICIES = [RetryPolicy, CommitPolicy, CheckpointPolicy]


def test_defaults_are_the_documented_ones():
    assert attrs.asdict(RetryPolicy()) == {
        "max_retries": 10,
        "initial_delay_s": 0.0,
        "backoff_coefficient": 1.0,
        "max_delay_s": 60.0,
    }
    assert attrs.asdict(CommitPolicy()) == {
        "on_checkpoint": True,
        "min_interval_s": 0.0,
        "final": True,
    }
    assert attrs.asdict(CheckpointPolicy()) == {
        "every_steps": None,
        "every_s": None,
        "keep_last": 3,
    }


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_are_frozen_values_given_by_keyword(policy):
    assert policy() == policy()
    assert hash(policy()) == hash(policy())
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(policy(), attrs.fields(policy)[0].name, 1)
    with pytest.raises(TypeError):
        policy(1)


@pytest.mark.parametrize(
    ("policy", "name", "value", "limit"),
    [
        (RetryPolicy, "max_retries", 11, "from 0 to 10"),
        (RetryPolicy, "max_retries", -1, "from 0 to 10"),
        (RetryPolicy, "max_retries", 2.0, "a whole number"),
        (RetryPolicy, "initial_delay_s", -1.0, "from 0 to 60"),
        (RetryPolicy, "initial_delay_s", 61.0, "from 0 to 60"),
        (RetryPolicy, "initial_delay_s", "5", "a finite number"),
        (RetryPolicy, "backoff_coefficient", 0.5, "from 1 to 10"),
        (RetryPolicy, "backoff_coefficient", 10.5, "from 1 to 10"),
        (RetryPolicy, "max_delay_s", 0.5, "from 1 to 60"),
        (RetryPolicy, "max_delay_s", 240.0, "from 1 to 60"),
        (CommitPolicy, "on_checkpoint", 1, "Pass True or False"),
        (CommitPolicy, "final", None, "Pass True or False"),
        (CommitPolicy, "min_interval_s", -0.1, "at least 0"),
        (CheckpointPolicy, "every_steps", 0, "at least 1"),
        (CheckpointPolicy, "every_steps", 1.5, "a whole number"),
        (CheckpointPolicy, "every_s", 0.0, "at least 0.001"),
        (CheckpointPolicy, "keep_last", 0, "at least 1"),
    ],
)
def test_an_error_names_the_value_the_limit_and_the_remedy(policy, name, value, limit):
    with pytest.raises(PolicyError) as caught:
        policy(**{name: value})
    message = str(caught.value)
    assert f"{policy.__name__}({name}={value!r})" in message
    assert limit in message
    # The remedy is a sentence of its own, after the limit.
    assert message.rstrip(".").split(". ")[1:], message


NUMBERS = [
    (policy, field.name)
    for policy in POLICIES
    for field in attrs.fields(policy)
    if "bool" not in str(field.type)
]


@pytest.mark.parametrize(("policy", "name"), NUMBERS)
@pytest.mark.parametrize("value", [True, False, math.nan, math.inf, -math.inf])
def test_bool_nan_and_infinity_are_no_numbers(policy, name, value):
    with pytest.raises(PolicyError, match=name):
        policy(**{name: value})


@pytest.mark.parametrize(("policy", "name"), [pair for pair in NUMBERS if pair[1].endswith("_s")])
def test_integers_are_accepted_where_seconds_are_floats(policy, name):
    given_an_int = getattr(policy(**{name: 7}), name)
    assert given_an_int == 7.0
    assert type(given_an_int) is float


def _modal_accepts(**numbers: float) -> bool:
    try:
        modal.Retries(**numbers)
    except modal.exception.InvalidError:
        return False
    return True


@given(
    initial=st.floats(-1, 70) | st.sampled_from([0, 60, 60.001]),
    coefficient=st.floats(0, 12) | st.sampled_from([1, 10]),
    cap=st.floats(0, 70) | st.sampled_from([1, 60, 0.999]),
    retries=st.integers(-2, 10),
)
def test_the_bounds_are_those_of_modal(initial, coefficient, cap, retries):
    """Modal's own object decides, but for the maximum of retries, which only its service knows."""
    try:
        policy = RetryPolicy(
            max_retries=retries,
            initial_delay_s=initial,
            backoff_coefficient=coefficient,
            max_delay_s=cap,
        )
    except PolicyError:
        policy = None
    assert (policy is not None) == _modal_accepts(
        max_retries=retries, initial_delay=initial, backoff_coefficient=coefficient, max_delay=cap
    )


def test_the_maximum_of_retries_is_checked_because_modal_does_not():
    assert _modal_accepts(max_retries=1000)
    with pytest.raises(PolicyError, match="10"):
        RetryPolicy(max_retries=1000)


@given(
    policy=st.builds(
        RetryPolicy,
        max_retries=st.integers(0, 10),
        initial_delay_s=st.floats(0, 60),
        backoff_coefficient=st.floats(1, 10),
        max_delay_s=st.floats(1, 60),
    )
)
def test_the_schedule_keeps_the_cap_and_grows(policy):
    delays = policy.schedule()
    assert len(delays) == policy.max_retries
    assert all(0 <= delay <= min(60.0, policy.max_delay_s) for delay in delays)
    assert list(delays) == sorted(delays)


def test_doubling_from_a_minute_stays_at_a_minute():
    """Many expect 60, 120, 240 s; Modal's service keeps 60 s, and the docstring says so."""
    policy = RetryPolicy(max_retries=3, initial_delay_s=60, backoff_coefficient=2.0)
    assert policy.schedule() == (60.0, 60.0, 60.0)
    assert policy.to_modal()._to_proto().max_delay_ms == 60_000
    assert "60, 120, 240 s" in RetryPolicy.__doc__
    with pytest.raises(PolicyError, match="caps delays at 60 s"):
        RetryPolicy(initial_delay_s=60, backoff_coefficient=2.0, max_delay_s=240)


def test_a_schedule_below_the_cap_is_the_geometric_one():
    policy = RetryPolicy(max_retries=4, initial_delay_s=5, backoff_coefficient=3, max_delay_s=40)
    assert policy.schedule() == (5.0, 15.0, 40.0, 40.0)


def test_a_retry_policy_becomes_modals():
    retries = RetryPolicy(
        max_retries=4, initial_delay_s=1.5, backoff_coefficient=2, max_delay_s=30
    ).to_modal()
    assert isinstance(retries, modal.Retries)
    proto = retries._to_proto()
    assert (proto.retries, proto.initial_delay_ms, proto.max_delay_ms) == (4, 1500, 30_000)
    assert proto.backoff_coefficient == 2.0


def test_without_steps_or_seconds_a_checkpoint_is_due_every_minute():
    assert CheckpointPolicy().period_s == 60.0
    assert CheckpointPolicy(every_s=5).period_s == 5.0
    assert CheckpointPolicy(every_steps=100).period_s is None
    assert CheckpointPolicy(every_steps=100, every_s=5).period_s == 5.0


@pytest.mark.parametrize(
    "policy",
    [
        RetryPolicy(max_retries=3, initial_delay_s=1),
        CommitPolicy(on_checkpoint=False, min_interval_s=30),
        CheckpointPolicy(every_steps=7, keep_last=1),
        CheckpointPolicy(),
    ],
)
def test_json_there_and_back(policy):
    assert type(policy).from_json(json.loads(json.dumps(policy.to_json()))) == policy


def test_unknown_keys_in_json_are_refused():
    with pytest.raises(PolicyError, match=r"unknown keys every_minutes.*It knows every_steps"):
        CheckpointPolicy.from_json({"every_minutes": 1})
