"""SnapshotTrainer: the traps that Modal accepts in silence, and the order of a start."""

from __future__ import annotations

import _ssl
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import modal
import pytest
from modal._partial_function import _find_callables_for_obj
from modal._partial_function import _PartialFunctionFlags as Flags

from modalkit import (
    CheckpointPolicy,
    CommitPolicy,
    Deployment,
    LifecycleError,
    PolicyError,
    SnapshotTrainer,
)
from modalkit._modal_introspect import raw_function
from modalkit.deployment import container_policy
from modalkit.snapshots import renew


class Plain:
    """Stands for SnapshotTrainer where a test shows what Modal does without it."""


Definition = Callable[[type], type]


def accepted(definition: Definition) -> type:
    """Define the class without modalkit, have Modal accept it, and return it."""
    cls = definition(Plain)
    app = modal.App("test-traps")
    assert isinstance(app.cls(serialized=True, enable_memory_snapshot=True)(cls), modal.Cls)
    return cls


def refused(definition: Definition, match: str) -> None:
    with pytest.raises(LifecycleError, match=match):
        definition(SnapshotTrainer)


def hooks(cls: type, flag: Flags) -> list[object]:
    """Call the hooks or methods that Modal's own search finds in *cls*, in its order."""
    return [found() for found in _find_callables_for_obj(cls(), flag).values()]


# -------------------------------------------------------------------- overrides that are ignored


DECORATORS = [
    pytest.param(modal.method(), Flags.CALLABLE_INTERFACE, "@modal.method()", id="method"),
    pytest.param(modal.enter(), Flags.ENTER_POST_SNAPSHOT, "@modal.enter()", id="enter"),
    pytest.param(
        modal.enter(snap=True), Flags.ENTER_PRE_SNAPSHOT, "@modal.enter(snap=True)", id="snap"
    ),
    pytest.param(modal.exit(), Flags.EXIT, "@modal.exit()", id="exit"),
]


AGAIN = {
    "@modal.method()": modal.method(),
    "@modal.enter()": modal.enter(),
    "@modal.enter(snap=True)": modal.enter(snap=True),
    "@modal.exit()": modal.exit(),
}
"""The same kinds for an override."""


def escaped(text: str) -> str:
    return text.replace("(", r"\(").replace(")", r"\)").replace(".", r"\.")


@pytest.mark.parametrize(("decorator", "flag", "spelt"), DECORATORS)
def test_an_undecorated_override_is_ignored_by_modal(decorator, flag, spelt):
    def define(base):
        class Parent(base):
            @decorator
            def work(self):
                return "parent"

        class Child(Parent):
            def work(self):
                return "child"

        return Child

    assert hooks(accepted(define), flag) == ["parent"]
    refused(define, rf"Child\.work overrides Parent\.work.*Decorate it with {escaped(spelt)}\.")


@pytest.mark.parametrize(("decorator", "flag", "spelt"), DECORATORS)
@pytest.mark.parametrize("value", [None, "a string", staticmethod(lambda: "child")])
def test_another_attribute_does_not_switch_it_off(decorator, flag, spelt, value):
    def define(base):
        class Parent(base):
            @decorator
            def work(self):
                return "parent"

        class Child(Parent):
            work = value

        return Child

    assert hooks(accepted(define), flag) == ["parent"]
    refused(define, rf"Child\.work = .* does not switch off Parent\.work.*{escaped(spelt)}")


def test_a_mixin_that_python_prefers_is_ignored_too():
    def define(base):
        class Mixin:
            def work(self):
                return "mixin"

        class Parent(base):
            @modal.method()
            def work(self):
                return "parent"

        class Child(Mixin, Parent): ...

        return Child

    assert hooks(accepted(define), Flags.CALLABLE_INTERFACE) == ["parent"]
    refused(define, r"Mixin\.work overrides Parent\.work")


def test_an_undecorated_base_under_a_decorated_mixin_is_an_ordinary_override():
    class Parent(SnapshotTrainer):
        def work(self):
            return "parent"

    class Child(Parent):
        @modal.method()
        def work(self):
            return "child"

    assert hooks(Child, Flags.CALLABLE_INTERFACE) == ["child"]


@pytest.mark.parametrize(("decorator", "flag", "spelt"), DECORATORS)
def test_an_override_with_the_same_decorator_is_fine(decorator, flag, spelt):
    class Parent(SnapshotTrainer):
        @decorator
        def work(self):
            return "parent"

    class Child(Parent):
        pass

    again = AGAIN[spelt]

    class Grandchild(Child):
        @again
        def work(self):
            return "grandchild"

    found = _find_callables_for_obj(Grandchild(), flag)
    assert found["work"]() == "grandchild"


# ----------------------------------------------------------------- overrides of which both run


@pytest.mark.parametrize("first", [True, False])
def test_a_hook_moved_to_the_other_side_of_the_snapshot_runs_on_both(first):
    def define(base):
        class Parent(base):
            @modal.enter(snap=first)
            def prepare(self):
                return "parent"

        class Child(Parent):
            @modal.enter(snap=not first)
            def prepare(self):
                return "child"

        return Child

    cls = accepted(define)
    assert {*hooks(cls, Flags.ENTER_PRE_SNAPSHOT), *hooks(cls, Flags.ENTER_POST_SNAPSHOT)} == {
        "parent",
        "child",
    }
    refused(define, r"Child\.prepare is decorated with @modal\.enter\(.*runs both")


def test_a_hook_in_both_phases_may_replace_a_hook_in_one():
    """The override takes the place of the old hook, and has another one besides: as written."""

    class Parent(SnapshotTrainer):
        @modal.enter()
        def prepare(self):
            return "parent"

    class Child(Parent):
        @modal.enter(snap=True)
        @modal.enter()
        def prepare(self):
            return "child"

    for flag in (Flags.ENTER_PRE_SNAPSHOT, Flags.ENTER_POST_SNAPSHOT):
        assert _find_callables_for_obj(Child(), flag)["prepare"]() == "child"


def test_a_hook_overridden_by_a_method_still_runs():
    def define(base):
        class Parent(base):
            @modal.enter()
            def prepare(self):
                return "parent's hook"

        class Child(Parent):
            @modal.method()
            def prepare(self):
                return "child's method"

        return Child

    cls = accepted(define)
    assert hooks(cls, Flags.ENTER_POST_SNAPSHOT) == ["parent's hook"]
    assert hooks(cls, Flags.CALLABLE_INTERFACE) == ["child's method"]
    refused(define, r"Child\.prepare is decorated with @modal\.method\(\)")


def test_an_exit_hook_overridden_by_an_enter_hook_still_runs():
    def define(base):
        class Parent(base):
            @modal.exit()
            def work(self):
                return "parent's exit"

        class Child(Parent):
            @modal.enter()
            def work(self):
                return "child's enter"

        return Child

    assert hooks(accepted(define), Flags.EXIT) == ["parent's exit"]
    refused(define, r"Child\.work is decorated with @modal\.enter\(\), Parent\.work with @modal\.e")


# ------------------------------------------------------- calls that meet a Function of Modal


class Failing:
    """What Modal puts on the object in a container: Functions by name, and no hooks."""

    def __call__(self):
        raise TypeError("'Function' object is not callable")

    def local(self):
        return "ran"


def in_the_container(cls: type, *functions: str) -> object:
    made = cls()
    made._modal_functions = dict.fromkeys(functions, Failing())
    return made


def test_a_method_called_by_super_fails_in_the_container_only():
    def define(base):
        class Parent(base):
            @modal.method()
            def train(self):
                return "ran"

        class Child(Parent):
            @modal.method()
            def train(self):
                return super().train()

        return Child

    cls = accepted(define)
    assert hooks(cls, Flags.CALLABLE_INTERFACE) == ["ran"]
    with pytest.raises(TypeError, match="not callable"):
        raw_function(vars(cls)["train"])(in_the_container(cls, "train"))
    refused(define, r"Child\.train uses super\(\)\.train, .*@modal\.method\(\).*plain method")


@pytest.mark.parametrize(("decorator", "flag", "spelt"), DECORATORS)
def test_a_decorated_member_called_by_self_fails_in_the_container_only(decorator, flag, spelt):
    def define(base):
        class Child(base):
            @decorator
            def helper(self):
                return "ran"

            def train(self):
                return self.helper()

        return Child

    cls = accepted(define)
    assert cls().train() == "ran"
    functions = ["helper"] if flag is Flags.CALLABLE_INTERFACE else []
    with pytest.raises((TypeError, KeyError)):
        in_the_container(cls, *functions).train()
    refused(define, rf"Child\.train \w+ self\.helper.*{escaped(spelt)}.*plain method")


@pytest.mark.parametrize(("decorator", "flag", "spelt"), DECORATORS)
def test_a_hook_called_by_super_fails_in_the_container_only(decorator, flag, spelt):
    again = AGAIN[spelt]

    def define(base):
        class Parent(base):
            @decorator
            def work(self):
                return "ran"

        class Child(Parent):
            @again
            def work(self):
                return super().work()

        return Child

    assert hooks(accepted(define), flag) == ["ran"]
    refused(define, r"Child\.work uses super\(\)\.work")


def test_a_call_is_seen_when_a_class_decorates_what_its_base_calls():
    class Parent(SnapshotTrainer):
        def evaluate(self): ...

        @modal.method()
        def train(self):
            return self.evaluate()

    with pytest.raises(LifecycleError, match=r"Parent\.train calls self\.evaluate\(\.\.\.\)"):

        class Child(Parent):
            @modal.method()
            def evaluate(self): ...


def test_other_uses_of_a_method_are_fine():
    class Child(SnapshotTrainer):
        def plain(self): ...

        @modal.method()
        def helper(self):
            return self.plain()

        @modal.method()
        def train(self, other):
            other.helper()
            self.helper.remote()
            return self.helper.local(), self.helper.spawn, other(self.helper), super().load()

    assert in_the_container(Child, "helper").helper.local() == "ran"


# ------------------------------------------------------------------------------- parameters


def test_inherited_parameters_are_dropped_if_the_class_has_none_of_its_own():
    def define(base):
        class Parent(base):
            name: str = modal.parameter(default="parent's")

            @modal.method()
            def work(self): ...

        class Child(Parent): ...

        return Child

    assert parameters(accepted(define)) == []
    assert parameters(accepted(define).__mro__[1]) == ["name"]
    refused(define, r"Child inherits the parameter Parent\.name.*`name: str = modal\.parameter\(")


def test_one_parameter_of_its_own_brings_the_inherited_ones_back():
    class Parent(SnapshotTrainer):
        name: str = modal.parameter(default="parent's")

    class Child(Parent):
        size: int = modal.parameter(default=1)

    assert sorted(parameters(Child)) == ["name", "size"]


def test_a_parameter_that_becomes_a_constant_is_no_parameter_any_more():
    class Parent(SnapshotTrainer):
        name: str = modal.parameter(default="parent's")

    class Child(Parent):
        name = "constant"

    assert parameters(Child) == []


def parameters(cls: type) -> list[str]:
    """Return the constructor arguments that Modal sees."""
    return list(modal.cls._get_class_constructor_signature(cls).parameters)


# ------------------------------------------------------------------------------ constructors


def refused_by_modal_only_when_decorated(definition: Definition) -> None:
    cls = definition(Plain)
    with pytest.raises(modal.exception.InvalidError, match="cannot have a custom constructor"):
        modal.App("test-constructor").cls(serialized=True)(cls)


def test_a_constructor_is_refused_when_the_class_is_defined():
    def define(base):
        class Child(base):
            def __init__(self):
                self.model = None

        return Child

    refused_by_modal_only_when_decorated(define)
    refused(define, r"Child\.__init__.*Set attributes in load\(\)")


def test_an_inherited_constructor_is_named_with_its_owner():
    @dataclass
    class Options:
        size: int = 1

    def define(base):
        class Child(Options, base): ...

        return Child

    refused_by_modal_only_when_decorated(define)
    refused(define, r"Child has a constructor, Options\.__init__")


# ------------------------------------------------------------------- names that are modalkit's


def test_a_method_called_run_would_shadow_the_run():
    def define(base):
        class Child(base):
            @modal.method()
            def run(self, epochs: int = 1): ...

        return Child

    accepted(define)
    refused(define, r"Child\.run shadows SnapshotTrainer\.run.*such as `train`")


def test_a_mixin_with_a_method_called_run_is_found_too():
    class Mixin:
        def run(self): ...

    with pytest.raises(LifecycleError, match=r"Mixin\.run shadows"):

        class Child(SnapshotTrainer, Mixin): ...


@pytest.mark.parametrize(
    "name", [name for name in vars(SnapshotTrainer) if name.startswith("_modalkit_")]
)
def test_the_private_hooks_are_final(name):
    with pytest.raises(LifecycleError, match=rf"Child\.{name}.*Override load\(\), place\(device\)"):
        type("Child", (SnapshotTrainer,), {name: lambda self: None})


def test_there_are_private_hooks():
    assert sum(name.startswith("_modalkit_") for name in vars(SnapshotTrainer)) >= 3


@pytest.mark.parametrize(("name", "arguments"), [("load", 0), ("place", 1), ("close", 0)])
@pytest.mark.parametrize(("decorator", "flag", "spelt"), DECORATORS)
def test_a_decorated_plain_method_would_run_twice(name, arguments, decorator, flag, spelt):
    def define(base):
        body = decorator((lambda self: "ran") if arguments == 0 else (lambda self, device: "ran"))
        return type("Child", (base,), {name: body})

    assert name in _find_callables_for_obj(accepted(define)(), flag)
    refused(define, rf"Child\.{name} is decorated with {escaped(spelt)}.*Remove the decorator")


def test_a_mixin_with_a_decorated_load_is_found_behind_a_plain_one():
    class Mixin:
        @modal.enter()
        def load(self): ...

    with pytest.raises(LifecycleError, match=r"Mixin\.load is decorated"):

        class Child(Mixin, SnapshotTrainer):
            def load(self): ...


async def _async(self): ...


def _generator(self):
    yield


async def _async_generator(self):
    yield


@pytest.mark.parametrize("body", [_async, _generator, _async_generator])
@pytest.mark.parametrize("name", ["load", "close"])
def test_a_plain_method_whose_body_would_never_run(name, body):
    """Modal awaits async hooks, but not what a hook calls; and a generator only starts."""
    with pytest.raises(LifecycleError, match=rf"Child\.{name} is async or a generator.*def {name}"):
        type("Child", (SnapshotTrainer,), {name: body})


@pytest.mark.parametrize(
    ("name", "body", "call"),
    [
        ("load", lambda self, path: None, r"load\(\)"),
        ("place", lambda self: None, r"place\(device\)"),
        ("close", lambda: None, r"close\(\)"),
    ],
)
def test_a_plain_method_with_other_arguments(name, body, call):
    with pytest.raises(LifecycleError, match=rf"Child\.{name} is called as {call}"):
        type("Child", (SnapshotTrainer,), {name: body})


@pytest.mark.parametrize("name", ["load", "place", "close"])
@pytest.mark.parametrize("value", [None, 3, staticmethod(print), property(lambda self: None)])
def test_a_plain_method_is_a_method(name, value):
    with pytest.raises(LifecycleError, match=rf"Child\.{name} = .* is no method"):
        type("Child", (SnapshotTrainer,), {name: value})


def test_plain_methods_follow_pythons_rules():
    calls = []

    class Mixin:
        def load(self):
            calls.append("mixin")
            super().load()

    class Parent(SnapshotTrainer):
        def load(self):
            calls.append("parent")
            super().load()

    class Child(Mixin, Parent):
        def load(self):
            calls.append("child")
            super().load()

    Child().load()
    assert calls == ["child", "mixin", "parent"]


# ------------------------------------------------------------------------------ class attributes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "0"),
        ("seed", True),
        ("seed", 0.5),
        ("seed", None),
        ("outputs", "/outputs"),
        ("outputs", ("/outputs", modal.Volume.from_name("v"))),
        ("mount", 1),
        ("checkpoints", 60),
        ("checkpoints", CommitPolicy()),
        ("commits", True),
    ],
)
def test_class_attributes_are_what_they_are_for(name, value):
    with pytest.raises(LifecycleError, match=rf"Child\.{name} = .*the attribute '{name}'"):
        type("Child", (SnapshotTrainer,), {name: value})


def test_the_mount_is_where_modal_mounts_volumes():
    with pytest.raises(PolicyError, match="such as '/outputs'"):
        type("Child", (SnapshotTrainer,), {"mount": "outputs"})


def test_a_seed_may_be_a_parameter():
    class Child(SnapshotTrainer):
        seed: int = modal.parameter(default=7)

    assert parameters(Child) == ["seed"]


def test_fit_class_attributes_are_kept():
    volume = modal.Volume.from_name("v")

    class Child(SnapshotTrainer):
        seed = 3
        outputs = volume
        mount = "/outputs"
        checkpoints = CheckpointPolicy(every_steps=2)
        commits = CommitPolicy(final=False)

    assert (Child.seed, Child.outputs, Child.mount) == (3, volume, "/outputs")


# -------------------------------------------------------------------------------- in the container


def test_in_a_container_nothing_is_checked_again(monkeypatch):
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    type("Child", (SnapshotTrainer,), {"run": None, "load": None, "seed": "x"})


def test_a_class_without_the_flag_for_snapshots_is_refused_by_modal():
    class Child(SnapshotTrainer):
        @modal.method()
        def train(self): ...

    with pytest.raises(modal.exception.InvalidError, match="must have `enable_memory_snapshot=Tr"):
        modal.App("test-flag").cls(serialized=True)(Child)


ENTER = (Flags.ENTER_PRE_SNAPSHOT, Flags.ENTER_POST_SNAPSHOT)


def start(trainer: SnapshotTrainer) -> None:
    """Start as Modal does: before the snapshot, after it."""
    for flag in ENTER:
        for hook in _find_callables_for_obj(trainer, flag).values():
            hook()


class Drawing(SnapshotTrainer):
    """Draws in each phase from every generator."""

    seed = 5

    def __new__(cls):
        trainer = super().__new__(cls)
        trainer.calls = []
        trainer.draws = {}
        return trainer

    def load(self):
        self.note("load")

    def place(self, device):
        self.note("place")
        self.device = device

    def close(self):
        self.note("close")

    def note(self, phase):
        import numpy as np
        import torch

        self.calls.append(phase)
        self.draws[phase] = (
            random.random(),
            float(np.random.rand()),
            float(torch.rand(1)),
        )


def test_a_start_loads_and_then_places_and_the_end_closes():
    trainer = Drawing()
    start(trainer)
    assert trainer.calls == ["load", "place"]
    import torch

    assert trainer.device == ("cuda" if torch.cuda.is_available() else "cpu")
    for hook in _find_callables_for_obj(trainer, Flags.EXIT).values():
        hook()
    assert trainer.calls == ["load", "place", "close"]


def test_load_and_place_are_seeded_and_what_follows_differs():
    first, second = Drawing(), Drawing()
    for trainer in (first, second):
        start(trainer)
        trainer.note("after")
    assert first.draws["load"] == second.draws["load"]
    assert first.draws["place"] == second.draws["place"]
    pairs = zip(first.draws["after"], second.draws["after"], strict=True)
    assert all(one != other for one, other in pairs)


def test_openssl_and_temporary_names_are_renewed_at_every_start_before_anything_else(monkeypatch):
    class Naming(Drawing):
        def place(self, device):
            self.calls.append("names renewed" if tempfile._name_sequence is None else "old names")
            super().place(device)

    trainer = Naming()
    tempfile.mktemp()  # now there is a generator of names, which a snapshot would hold
    monkeypatch.setattr(_ssl, "RAND_add", lambda data, entropy: trainer.calls.append("openssl"))
    start(trainer)
    assert trainer.calls == ["load", "openssl", "names renewed", "place"]


def test_the_first_run_in_a_container_does_not_renew_what_the_start_did(monkeypatch):
    monkeypatch.setenv("MODAL_TASK_ID", "ta-of-a-test")
    monkeypatch.setattr(renew, "_renewed_in", None)
    start(Drawing())
    before = random.getstate()
    renew.renew_once_per_container()
    assert random.getstate() == before


def test_a_restored_start_places_alike_and_then_differs():
    """The part after the snapshot alone, twice over one state of memory."""
    trainer = Drawing()
    (load,) = _find_callables_for_obj(trainer, Flags.ENTER_PRE_SNAPSHOT).values()
    (place,) = _find_callables_for_obj(trainer, Flags.ENTER_POST_SNAPSHOT).values()
    load()
    snapshot = random.getstate()
    place()
    trainer.note("after")
    one = dict(trainer.draws)
    random.setstate(snapshot)
    place()
    trainer.note("after")
    assert trainer.draws["place"] == one["place"]
    assert trainer.draws["after"][0] != one["after"][0]


def test_the_seed_decides_what_load_draws():
    class Other(Drawing):
        seed = 6

    first, second = Drawing(), Other()
    start(first)
    start(second)
    assert first.draws["load"] != second.draws["load"]


def test_an_error_in_a_plain_method_passes_with_its_own_traceback():
    class Broken(SnapshotTrainer):
        def load(self):
            raise KeyError("weights")

    with pytest.raises(KeyError, match="weights") as caught:
        start(Broken())
    assert caught.traceback[-1].name == "load"
    assert caught.value.__cause__ is None


def test_another_modalkit_in_the_container_is_found_before_loading(monkeypatch):
    from modalkit import VersionMismatchError

    policy = Deployment.training().options()["env"]["MODALKIT_POLICY"]
    monkeypatch.setenv("MODALKIT_POLICY", policy.replace('"modalkit": "', '"modalkit": "9.'))
    trainer = Drawing()
    with pytest.raises(VersionMismatchError):
        start(trainer)
    assert trainer.calls == []


# ------------------------------------------------------------------------------ where runs live


def test_a_run_without_a_place_is_refused_at_the_first_call():
    class Child(SnapshotTrainer): ...

    with pytest.raises(LifecycleError, match=r"Child calls self\.run.*outputs="):
        Child().run("x")


def test_class_attributes_beat_the_deployment(monkeypatch):
    deployed = Deployment.training(outputs=("/deployed", modal.Volume.from_name("deployed")))
    monkeypatch.setenv("MODALKIT_POLICY", deployed.options()["env"]["MODALKIT_POLICY"])

    class ByDeployment(SnapshotTrainer): ...

    class ByAttributes(SnapshotTrainer):
        outputs = modal.Volume.from_name("own")
        mount = "/own"

    volume, mount = ByDeployment()._modalkit_outputs()
    assert (volume.name, mount) == ("deployed", "/deployed")
    volume, mount = ByAttributes()._modalkit_outputs()
    assert (volume.name, mount) == ("own", "/own")


def test_the_policies_survive_options_that_replace_the_environment(monkeypatch):
    """`with_options(secrets=...)` and `with_options(env=...)` replace what carries them."""
    monkeypatch.setenv("MODALKIT_POLICY", "replaced below, and put back after the test")
    monkeypatch.delenv("MODALKIT_POLICY")
    deployed = Deployment.training(
        outputs=("/deployed", modal.Volume.from_name("deployed")),
        checkpoints=CheckpointPolicy(every_steps=7),
    )

    class Child(SnapshotTrainer):
        @modal.method()
        def train(self): ...

    deployed.cls(modal.App("test-replaced"), serialized=True)(Child)
    trainer = Child()
    hooks_of = [_find_callables_for_obj(trainer, flag) for flag in ENTER]
    for hook in [hook for found in hooks_of for hook in found.values()]:
        monkeypatch.delenv("MODALKIT_POLICY", raising=False)  # a restore brings its own too
        hook()
        _, mount = trainer._modalkit_outputs()
        assert mount == "/deployed"
        assert container_policy().checkpoints == CheckpointPolicy(every_steps=7)


def test_the_environment_beats_the_policies_of_the_class(monkeypatch):
    """The laptop has the last word: what it sent is what Modal was told."""
    sent = Deployment.training(timeout_s=60).options()["env"]["MODALKIT_POLICY"]
    monkeypatch.setenv("MODALKIT_POLICY", sent)

    class Child(SnapshotTrainer):
        @modal.method()
        def train(self): ...

    Deployment.training(timeout_s=70).cls(modal.App("test-sent"), serialized=True)(Child)
    start(Child())
    assert container_policy().timeout_s == 60


def test_commits_of_the_class_beat_the_deployments(tmp_path, monkeypatch):
    deployed = Deployment.training(commits=CommitPolicy(on_checkpoint=True))
    monkeypatch.setenv("MODALKIT_POLICY", deployed.options()["env"]["MODALKIT_POLICY"])

    class Counting(Directory):
        commits = 0

        def commit(self):
            self.commits += 1

    def commits_of(**attributes):
        volume = Counting()
        mount = tmp_path / str(len([*tmp_path.iterdir()]))
        mount.mkdir()
        here = {"outputs": volume, "mount": str(mount), **attributes}
        trainer = type("Child", (SnapshotTrainer,), here)()
        with trainer.run("r", checkpoints=CheckpointPolicy(every_steps=1)) as run:
            for _ in run.steps(6):
                pass
        return volume.commits

    every = commits_of()
    assert every >= 6
    assert commits_of(commits=CommitPolicy(on_checkpoint=False)) <= every - 5


class Directory:
    """A Volume that is only a directory."""

    def commit(self): ...

    def reload(self): ...


def test_a_run_has_the_trainers_volume_seed_and_policies(tmp_path, monkeypatch):
    deployed = Deployment.training(
        outputs=("/deployed", modal.Volume.from_name("deployed")),
        checkpoints=CheckpointPolicy(every_s=1000),
    )
    monkeypatch.setenv("MODALKIT_POLICY", deployed.options()["env"]["MODALKIT_POLICY"])

    class Child(SnapshotTrainer):
        seed = 11
        outputs = Directory()
        mount = str(tmp_path)
        checkpoints = CheckpointPolicy(every_steps=1, keep_last=100)

    with Child().run("mine", config={"epochs": 3}) as run:
        assert run.seed == 11
        for _ in run.steps(3):
            pass
    assert run.summary()["status"] == "finished"
    manifests = [*(tmp_path / "runs" / "mine" / "checkpoints").glob("ckpt-*.json")]
    assert len(manifests) == 4  # of step 0 and of each step
    with Child().run("other", seed=12, checkpoints=CheckpointPolicy(every_steps=3)) as run:
        assert run.seed == 12
        for _ in run.steps(4):
            pass
    steps = {p.name.split("-")[1] for p in (tmp_path / "runs" / "other").glob("*/ckpt-*.json")}
    assert {int(step) for step in steps} == {0, 3, 4}


def test_a_trainer_goes_on_where_it_stopped(tmp_path):
    class Child(SnapshotTrainer):
        outputs = Directory()
        mount = str(tmp_path)
        checkpoints = CheckpointPolicy(every_steps=1)

        def load(self):
            import torch

            self.weight = torch.zeros(1)

        def train(self, stop_at=None):
            done = []
            with self.run("r", weight=self.weight) as run:
                for step in run.steps(5):
                    if step == stop_at:
                        raise KeyboardInterrupt
                    self.weight += 1
                    done.append(step)
            return done, float(self.weight)

    first, second = Child(), Child()
    start(first)
    with pytest.raises(KeyboardInterrupt):
        first.train(stop_at=2)
    start(second)
    assert second.train() == ([2, 3, 4], 5.0)
