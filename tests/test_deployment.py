"""Deployment: the keywords for Modal, and the policies on their way to the container."""

from __future__ import annotations

import inspect
import json

import modal
import pytest

import modalkit
from modalkit import (
    CheckpointPolicy,
    CommitPolicy,
    Deployment,
    LifecycleError,
    PolicyError,
    RetryPolicy,
    SnapshotTrainer,
    VersionMismatchError,
)
from modalkit.deployment import ContainerPolicy, Outputs, container_policy


@pytest.fixture
def volume() -> modal.Volume:
    return modal.Volume.from_name("outputs-of-a-test")


def policy_of(options) -> ContainerPolicy:
    """Read the keywords as a container would."""
    return container_policy({"MODALKIT_POLICY": options["env"]["MODALKIT_POLICY"]})


# ------------------------------------------------------------------------------------ defaults


def test_without_arguments_it_is_a_long_training_and_names_no_volume():
    options = Deployment.training().options()
    assert set(options) == {
        "enable_memory_snapshot",
        "env",
        "retries",
        "single_use_containers",
        "startup_timeout",
        "timeout",
    }
    assert options["enable_memory_snapshot"] is True
    assert options["single_use_containers"] is True
    assert (options["timeout"], options["startup_timeout"]) == (86_400, 1800)
    assert options["retries"]._to_proto() == RetryPolicy().to_modal()._to_proto()


def test_a_key_is_there_only_if_it_has_a_value():
    deployment = Deployment.training(retries=None, startup_timeout_s=None)
    assert set(deployment.options()) == {
        "enable_memory_snapshot",
        "env",
        "single_use_containers",
        "timeout",
    }


def test_the_policies_travel_as_json(volume):
    deployment = Deployment.training(
        outputs=("/outputs", volume),
        retries=RetryPolicy(max_retries=2),
        checkpoints=CheckpointPolicy(every_s=60, keep_last=3),
        commits=CommitPolicy(min_interval_s=5),
        timeout_s=3600,
    )
    assert json.loads(deployment.options()["env"]["MODALKIT_POLICY"]) == {
        "modalkit": modalkit.__version__,
        "retries": {
            "max_retries": 2,
            "initial_delay_s": 0.0,
            "backoff_coefficient": 1.0,
            "max_delay_s": 60.0,
        },
        "checkpoints": {"every_steps": None, "every_s": 60.0, "keep_last": 3},
        "commits": {"on_checkpoint": True, "min_interval_s": 5.0, "final": True},
        "timeout_s": 3600,
        "grace_s": 30.0,
        "outputs": {"mount": "/outputs", "volume": "outputs-of-a-test"},
    }


def test_the_container_reads_what_the_laptop_wrote(volume):
    deployment = Deployment.training(
        outputs=("/outputs/", volume), checkpoints=CheckpointPolicy(every_steps=5), timeout_s=60
    )
    assert policy_of(deployment.options()) == ContainerPolicy(
        retries=RetryPolicy(),
        checkpoints=CheckpointPolicy(every_steps=5),
        commits=None,
        timeout_s=60,
        grace_s=30.0,
        outputs=Outputs("/outputs", "outputs-of-a-test"),
        modalkit=modalkit.__version__,
    )


def test_without_a_deployment_the_container_has_the_defaults():
    assert container_policy({}) == ContainerPolicy()
    assert ContainerPolicy().grace_s == 30.0


# --------------------------------------------------------------------------- yours and the merge


def test_yours_pass_through_and_override():
    secret = modal.Secret.from_dict({"A": "1"})
    options = Deployment.training().options(
        gpu="T4", secrets=[secret], enable_memory_snapshot=False, single_use_containers=False
    )
    assert options["gpu"] == "T4"
    assert options["secrets"] == [secret]
    assert options["enable_memory_snapshot"] is False
    assert options["single_use_containers"] is False


def test_env_is_merged_and_yours_is_kept():
    options = Deployment.training().options(env={"HF_HOME": "/cache", "NONE": None})
    assert set(options["env"]) == {"HF_HOME", "NONE", "MODALKIT_POLICY"}
    assert options["env"]["HF_HOME"] == "/cache"


def test_the_policies_are_not_yours_to_set_in_env():
    with pytest.raises(PolicyError, match="modalkit writes this variable itself"):
        Deployment.training().options(env={"MODALKIT_POLICY": "{}"})


def test_volumes_are_merged(volume):
    data = modal.Volume.from_name("data-of-a-test")
    deployment = Deployment.training(outputs=("/outputs", volume))
    assert deployment.options()["volumes"] == {"/outputs": volume}
    assert deployment.options(volumes={"/data": data})["volumes"] == {
        "/outputs": volume,
        "/data": data,
    }
    assert Deployment.training().options(volumes={"/data/": data})["volumes"] == {"/data": data}


@pytest.mark.parametrize("path", ["/outputs", "/outputs/"])
def test_another_volume_at_the_mount_of_the_outputs_is_refused(volume, path):
    deployment = Deployment.training(outputs=("/outputs", volume))
    with pytest.raises(PolicyError, match="Mount yours somewhere else"):
        deployment.options(volumes={path: modal.Volume.from_name("other-of-a-test")})


def test_the_same_volume_at_the_mount_of_the_outputs_may_have_your_options(volume):
    mine = modal.Volume.from_name("outputs-of-a-test").with_mount_options(sub_path="/me")
    options = Deployment.training(outputs=("/outputs", volume)).options(volumes={"/outputs": mine})
    assert options["volumes"] == {"/outputs": mine}


@pytest.mark.parametrize(
    ("yours", "expected"),
    [
        (3, RetryPolicy(max_retries=3, initial_delay_s=1)),
        (
            modal.Retries(max_retries=4, initial_delay=2.0, backoff_coefficient=3.0, max_delay=9.0),
            RetryPolicy(max_retries=4, initial_delay_s=2, backoff_coefficient=3, max_delay_s=9),
        ),
        (RetryPolicy(max_retries=5), RetryPolicy(max_retries=5)),
        (None, None),
    ],
)
def test_the_json_says_which_retries_modal_will_do(yours, expected):
    """A number means to Modal a fixed delay of one second; its own reading of it is compared."""
    options = Deployment.training().options(retries=yours)
    assert policy_of(options).retries == expected
    if yours is None:
        assert "retries" not in options
    else:
        given = yours.to_modal() if isinstance(yours, RetryPolicy) else yours
        parse = modal._utils.function_utils._parse_retries
        assert parse(options["retries"]) == parse(given)
    assert policy_of(Deployment.training(retries=yours).options()).retries == expected


def test_the_json_says_which_timeout_modal_will_keep():
    options = Deployment.training(timeout_s=7200).options(timeout=600, startup_timeout=60)
    assert (options["timeout"], options["startup_timeout"]) == (600, 60)
    assert policy_of(options).timeout_s == 600


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["timeout_s", "startup_timeout_s"])
@pytest.mark.parametrize("value", [0, 86_401, 1.5, True, "60", float("nan")])
def test_timeouts_are_whole_seconds_of_a_day(name, value):
    with pytest.raises(PolicyError, match=rf"{name} must be .*whole number from 1 to 86400"):
        Deployment.training(**{name: value})
    with pytest.raises(PolicyError, match=rf"{name} must be .*whole number from 1 to 86400"):
        Deployment.training().options(**{name.removesuffix("_s"): value})


def test_whole_floats_are_seconds_too():
    """Modal's protocol takes integers only, and fails on a float when the app is loaded."""
    timeout = Deployment.training(timeout_s=3600.0).options()["timeout"]
    assert timeout == 3600
    assert type(timeout) is int


def test_no_timeout_is_not_to_be_had():
    with pytest.raises(PolicyError, match="24 h at most"):
        Deployment.training().options(timeout=None)


@pytest.mark.parametrize(
    ("keyword", "advice"),
    [
        ("timeot", r"Did you mean timeout=\?"),
        ("gpus", r"Did you mean gpu=\?"),
        ("keep_warm", "write min_containers="),
        ("concurrency_limit", "write max_containers="),
        ("container_idle_timeout", "write scaledown_window="),
        ("allow_concurrent_inputs", r"@modal.concurrent\(max_inputs="),
        ("_allow_concurrent_inputs", r"@modal.concurrent\(max_inputs="),
        ("max_inputs", "write single_use_containers=True"),
        ("enable_gpu_snapshot", "experimental_options="),
        ("_experimental_enable_gpu_snapshot", "experimental_options="),
        ("checkpointing_enabled", "write enable_memory_snapshot="),
        ("mounts", r"image.add_local_dir\("),
        ("preemptible", "write nonpreemptible="),
        ("completely_unheard_of", "They take .*buffer_containers"),
    ],
)
def test_keywords_that_modal_does_not_know_are_refused_with_the_word_it_knows(keyword, advice):
    with pytest.raises(PolicyError, match=rf"^{keyword}= is no argument.*{advice}"):
        Deployment.training().options(**{keyword: 1})


def test_every_argument_of_modal_is_known():
    known = set(inspect.signature(modal.App.cls).parameters)
    known |= set(inspect.signature(modal.App.function).parameters)
    for name in known - {"self", "max_inputs", "env", "volumes", "timeout", "startup_timeout"}:
        Deployment.training().options(**{name: None})


def test_a_gpu_container_cannot_be_nonpreemptible():
    with pytest.raises(PolicyError, match="Leave nonpreemptible out"):
        Deployment.training().options(gpu="T4", nonpreemptible=True)
    assert Deployment.training().options(nonpreemptible=True)["nonpreemptible"] is True


@pytest.mark.parametrize(
    ("retries", "message"),
    [(True, "max_retries=True"), ("3", "retries='3'"), (11, "max_retries=11")],
)
def test_retries_that_modal_or_its_service_would_refuse(retries, message):
    with pytest.raises(PolicyError, match=message):
        Deployment.training(retries=retries)
    with pytest.raises(PolicyError, match=message):
        Deployment.training().options(retries=retries)


READ_ONLY = modal.Volume.from_name("read-only-of-a-test").with_mount_options(read_only=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu": "H100:0"}, r"gpu='H100:0': .*count of 1 or more.*gpu=\"H100:8\""),
        ({"gpu": "H100:many"}, "gpu='H100:many'"),
        ({"gpu": ("H100", "A100")}, r"gpu=\('H100', 'A100'\): .*a list"),
        ({"gpu": []}, r"gpu=\[\]: .*leave gpu out"),
        ({"gpu": ["H100", "A100:0"]}, r"gpu=\["),
        ({"scaledown_window": 1}, "scaledown_window=1: .*from 2 to 3600"),
        ({"scaledown_window": 3601}, "from 2 to 3600"),
        ({"scaledown_window": 60.5}, "whole number of seconds"),
        ({"min_containers": 3, "max_containers": 2}, "min_containers=3 with max_containers=2"),
        ({"min_containers": -1}, "min_containers=-1: a whole number from 0 to 4000"),
        ({"buffer_containers": True}, "buffer_containers=True"),
        ({"env": {"WORLD_SIZE": 8}}, r"env=\{'WORLD_SIZE': 8\}: .*are strings.*as a string"),
        ({"secrets": modal.Secret.from_dict({})}, "secrets=.*list of modal.Secret"),
        ({"secrets": ["token"]}, r"secrets=\['token'\]"),
        ({"volumes": {"/": READ_ONLY}}, "mount '/': .*such as '/outputs'"),
        ({"volumes": {"/root": READ_ONLY}}, "mount '/root'"),
        ({"volumes": {"/tmp/": READ_ONLY}}, "mount '/tmp/'"),
        ({"volumes": {"data": READ_ONLY}}, "mount 'data'"),
        ({"volumes": {"/a/../b": READ_ONLY}}, "mount '/a/../b'"),
        ({"volumes": {1: READ_ONLY}}, "a mount point is a path"),
        ({"volumes": [READ_ONLY]}, "a dictionary from mount points"),
        ({"volumes": {"/a": READ_ONLY, "/a/": READ_ONLY}}, "both are the mount point '/a'"),
        ({"experimental_options": {"enable_gpu_snapshots": True}}, "mean 'enable_gpu_snapshot'"),
        ({"experimental_options": {"gpu_snapshot": True}}, "mean 'enable_gpu_snapshot'"),
        ({"experimental_options": "flash"}, "is a dictionary"),
    ],
)
def test_what_modals_service_would_not_take_is_refused_here(options, message):
    with pytest.raises(PolicyError, match=message):
        Deployment.training().options(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"gpu": "any"},
        {"gpu": "A100-80GB:8"},
        {"gpu": "H100!"},
        {"gpu": ["H100:2", "A100:2"]},
        {"scaledown_window": 2},
        {"scaledown_window": 3600},
        {"min_containers": 2, "max_containers": 2, "buffer_containers": 0},
        {"env": {"A": "", "B": None}},
        {"secrets": (modal.Secret.from_dict({}),)},
        {"volumes": {"/root/data": READ_ONLY}},
        {"experimental_options": {"enable_gpu_snapshot": True, "of_the_future": 1}},
    ],
)
def test_what_modals_service_takes_passes(options):
    given = Deployment.training().options(**options)
    assert {key: given[key] for key in options if key != "env"} == {
        key: value for key, value in options.items() if key != "env"
    }
    modal.App("test-options").function(serialized=True, **given)(lambda: None)


@pytest.mark.parametrize(
    "volume",
    [READ_ONLY, pytest.param(modal.Volume.from_name("v").read_only(), id="the old spelling")],
)
def test_outputs_must_be_writable(volume):
    with pytest.raises(PolicyError, match="is read-only: runs could not be saved"):
        Deployment.training(outputs=("/outputs", volume))
    writable = modal.Volume.from_name(volume.name)
    with pytest.raises(PolicyError, match=r"is read-only.*Leave it out"):
        Deployment.training(outputs=("/outputs", writable)).options(volumes={"/outputs": volume})


@pytest.mark.parametrize("mount", ["outputs", "/", "/root", "/tmp", "/a/../b", "/tmp/"])
def test_outputs_are_mounted_where_modal_mounts_volumes(volume, mount):
    with pytest.raises(PolicyError, match="such as '/outputs'"):
        Deployment.training(outputs=(mount, volume))


@pytest.mark.parametrize("outputs", ["/outputs", ("/outputs",), ("/outputs", None), (1, 2)])
def test_outputs_are_a_mount_and_a_volume(outputs):
    with pytest.raises(PolicyError, match=r"outputs=\(\"/outputs\", volume\)|no modal.Volume"):
        Deployment.training(outputs=outputs)


@pytest.mark.parametrize(
    ("unopenable", "reason"),
    [
        (modal.Volume.from_id("vo-1234"), "has no name"),
        (modal.Volume.from_name("v", environment_name="dev"), "of environment 'dev'"),
        (
            modal.Volume.from_name("v", environment_name="dev").with_mount_options(sub_path="/a"),
            "of environment 'dev'",
        ),
    ],
)
def test_a_volume_that_the_container_cannot_open_by_name_must_be_a_class_attribute(
    unopenable, reason
):
    with pytest.raises(PolicyError, match=rf"{reason}.*`outputs = volume`"):
        Deployment.training(outputs=("/outputs", unopenable))


@pytest.mark.parametrize(
    ("name", "value"), [("checkpoints", 60), ("commits", True), ("checkpoints", CommitPolicy())]
)
def test_policies_are_policies(name, value):
    with pytest.raises(PolicyError, match=rf"{name}=.*pass a C\w+Policy"):
        Deployment.training(**{name: value})


# ----------------------------------------------------------------------------------- the container


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"modalkit": 1', "3"])
def test_a_foreign_policy_variable_is_named(text):
    with pytest.raises(PolicyError, match=r"MODALKIT_POLICY=.*Leave the variable to modalkit"):
        container_policy({"MODALKIT_POLICY": text})


def test_a_policy_outside_the_limits_is_refused_in_the_container_too():
    content = json.loads(Deployment.training().options()["env"]["MODALKIT_POLICY"])
    content["retries"]["max_retries"] = 99
    with pytest.raises(PolicyError, match="max_retries=99"):
        container_policy({"MODALKIT_POLICY": json.dumps(content)})


def test_another_version_in_the_container_is_an_error():
    content = json.loads(Deployment.training().options()["env"]["MODALKIT_POLICY"])
    content["modalkit"] = "0.2.0"
    # Whatever else another version writes: the version is looked at first.
    del content["retries"]
    with pytest.raises(VersionMismatchError, match=rf"{modalkit.__version__}.*0\.2\.0.*add_to"):
        container_policy({"MODALKIT_POLICY": json.dumps(content)})


# ------------------------------------------------------------------------- both decorators of Modal


def service_of(decorated):
    """Return what modal recorded for a class or function."""
    inner = modal._utils.async_utils.synchronizer._translate_in(decorated)
    return inner._get_class_service_function() if isinstance(decorated, modal.Cls) else inner


def test_the_same_keywords_serve_classes_and_functions(volume):
    deployment = Deployment.training(outputs=("/outputs", volume), timeout_s=600)
    app = modal.App("test-deployment")

    @app.function(serialized=True, **deployment.options(cpu=2.0))
    def train(): ...

    @app.cls(serialized=True, **deployment.options(cpu=2.0))
    class Trainer:
        @modal.method()
        def train(self): ...

    for decorated in (train, Trainer):
        spec = service_of(decorated)._spec
        assert list(spec.volumes) == ["/outputs"]
        assert len(spec.secrets) == 1  # env= becomes one


def test_the_short_form_is_the_long_form(volume):
    deployment = Deployment.training(outputs=("/outputs", volume), timeout_s=600)
    app = modal.App("test-short-form")

    @deployment.cls(app, serialized=True, gpu="T4", min_containers=1)
    class Short(SnapshotTrainer):
        @modal.method()
        def train(self): ...

    @app.cls(**deployment.options(serialized=True, gpu="T4", min_containers=1))
    class Long(SnapshotTrainer):
        @modal.method()
        def train(self): ...

    assert isinstance(Short, modal.Cls)
    assert repr(service_of(Short)._spec.gpus) == repr(service_of(Long)._spec.gpus) == "'T4'"
    assert service_of(Short)._function_info == service_of(Long)._function_info


def test_the_short_form_checks_its_keywords_before_the_class_is_there():
    with pytest.raises(PolicyError, match="Did you mean timeout="):
        Deployment.training().cls(modal.App("x"), timeot=1)


# ----------------------------------------------------------------------- where runs live


def trains_nowhere():
    class Trainer(SnapshotTrainer):
        @modal.method()
        def train(self, run_id: str):
            with self.run(run_id) as run:
                return run.summary()

    return Trainer


def never_runs():
    class Trainer(SnapshotTrainer):
        @modal.method()
        def train(self, command: str):
            import subprocess

            return subprocess.run(command, check=True)

    return Trainer


def test_a_class_that_calls_run_must_know_where_when_it_is_decorated(volume):
    app = modal.App("test-where")
    decorate = Deployment.training().cls(app, serialized=True)
    with pytest.raises(LifecycleError, match=r"Trainer calls self\.run.*outputs="):
        decorate(trains_nowhere())
    Deployment.training(outputs=("/outputs", volume)).cls(app, serialized=True)(trains_nowhere())


def test_a_class_that_never_calls_run_needs_no_outputs():
    Deployment.training().cls(modal.App("test-never"), serialized=True)(never_runs())


def test_class_attributes_say_it_as_well(volume):
    trainer = trains_nowhere()
    trainer.outputs, trainer.mount = volume, "/outputs"
    Deployment.training().cls(modal.App("test-attributes"), serialized=True)(trainer)


@pytest.mark.parametrize("present", ["outputs", "mount"])
def test_half_of_the_class_attributes_is_refused(volume, present):
    trainer = trains_nowhere()
    setattr(trainer, present, {"outputs": volume, "mount": "/outputs"}[present])
    deployment = Deployment.training(outputs=("/elsewhere", volume))
    with pytest.raises(LifecycleError, match="they go together"):
        deployment.cls(modal.App("test-half"), serialized=True)(trainer)


@pytest.mark.parametrize(
    ("decorator", "reason"),
    [
        (modal.clustered(size=2), r"@modal\.clustered\(\).*rank and addresses.*H100:8"),
        (modal.concurrent(max_inputs=2), r"@modal\.concurrent\(\).*main thread.*Leave it out"),
    ],
)
def test_a_class_whose_work_is_shared_is_refused(volume, decorator, reason):
    deployment = Deployment.training(outputs=("/outputs", volume))
    decorate = deployment.cls(modal.App("test-shared"), serialized=True, gpu="T4")
    with pytest.raises(LifecycleError, match=rf"Trainer is decorated with {reason}"):
        decorate(decorator(trains_nowhere()))


def test_modal_itself_takes_clusters_from_snapshots(volume):
    """The refusal above says what Modal's client does not."""
    clustered = modal.clustered(size=2)(trains_nowhere())
    options = Deployment.training(outputs=("/outputs", volume)).options(serialized=True, gpu="T4:8")
    assert isinstance(modal.App("test-clustered").cls(**options)(clustered), modal.Cls)


def test_any_class_may_be_decorated():
    @Deployment.training().cls(modal.App("test-plain"), serialized=True)
    class Plain:
        @modal.method()
        def work(self): ...

    assert isinstance(Plain, modal.Cls)


def test_in_a_container_nothing_is_checked_again(monkeypatch, volume):
    """The laptop did; what is defined there must be defined here, whatever it is."""
    deployment = Deployment.training(outputs=("/outputs", volume))
    decorate = Deployment.training().cls(modal.App("test-container"), serialized=True)
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    options = deployment.options(unheard_of=1, gpu="T4:0", nonpreemptible=True)
    assert options["unheard_of"] == 1
    assert isinstance(decorate(trains_nowhere()), modal.Cls)
    Deployment.training(outputs=("/outputs", modal.Volume.from_id("vo-1234")))
