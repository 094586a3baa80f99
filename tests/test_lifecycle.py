"""What is seen of a class's methods: whether they call `self.run(...)`."""

from __future__ import annotations

import functools
import subprocess

import modal
import pytest

from modalkit.lifecycle import reads_attribute


class Base:
    def run(self): ...

    def inner(self):
        return self.run()


def logged(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return function(*arguments)

    return wrapper


class InAMethod(Base):
    def train(self, run_id):
        with self.run(run_id) as run:
            return run


class InAModalMethod(Base):
    @modal.method()
    def train(this, run_id):  # noqa: N805 - the name of the first argument is the user's
        return this.run(run_id)


class InAnAsyncMethod(Base):
    async def train(self, run_id):
        async with self.run(run_id):
            pass


class InAComprehension(Base):
    def train(self, run_ids):
        return [self.run(run_id) for run_id in run_ids]


class InALambda(Base):
    def train(self, run_id):
        return lambda: self.run(run_id)


class AsAnArgument(Base):
    def train(self, use):
        return use(self.run)


class UnderADecorator(Base):
    @logged
    def train(self, run_id):
        return self.run(run_id)


class InAMixin:
    def train(self, run_id):
        return self.run(run_id)


class ByAMixin(InAMixin, Base): ...


@pytest.mark.parametrize(
    "cls",
    [
        InAMethod,
        InAModalMethod,
        InAnAsyncMethod,
        InAComprehension,
        InALambda,
        AsAnArgument,
        UnderADecorator,
        ByAMixin,
    ],
)
def test_reads_of_self_are_seen(cls):
    assert reads_attribute(cls, "run", base=Base)


class OfOthers(Base):
    command = "run"

    def train(self, other, run):
        other.run(self)
        subprocess.run(other, check=True)
        return self.runs(run), self.command, (self, "run")

    def store(self, value):
        self.run = value

    @staticmethod
    def helper(run):
        return run()


class Nothing(Base): ...


@pytest.mark.parametrize("cls", [OfOthers, Nothing])
def test_other_runs_are_not_taken_for_it(cls):
    assert not reads_attribute(cls, "run", base=Base)
