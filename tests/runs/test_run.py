"""A run: what lies on the Volume, what is refused, what its parts return."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import modalkit
from modalkit.checkpoint.store import read
from modalkit.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    RunConfigMismatchError,
    RunError,
)
from modalkit.runs import seeding
from modalkit.runs.attempts import read_attempts
from modalkit.telemetry.events import read_events, read_metrics
from tests.support.training import (
    STEPS,
    Killed,
    Outcome,
    Training,
    at,
    fail,
    survive,
    unchanged_generators,
)


def directory(volume, run_id: str = "r") -> Path:
    return volume.committed / "runs" / run_id


def kinds(volume) -> list[str]:
    return [event.kind for event in read_events(directory(volume))]


def bare(volume, run_id: str = "r", /, **options):
    return modalkit.run(run_id, **{"volume": volume, "mount": volume.mount, **options})


# ---- what lies on the Volume --------------------------------------------------------------------


def test_the_layout(volume, monkeypatch):
    monkeypatch.setenv("MODAL_TASK_ID", "ta-01ABC")
    Training(volume).fit(3)
    files = {str(p.relative_to(directory(volume))) for p in directory(volume).rglob("*")}
    expected = [
        r"run\.json",
        r"attempts",
        r"attempts/1-ta-01ABC\.json",
        r"events",
        r"events/1-ta-01ABC\.jsonl",
        r"checkpoints",
        r"checkpoints/ckpt-0000000000-ta-01ABC-[0-9a-f]{8}\.json",
        r"checkpoints/ckpt-0000000003-ta-01ABC-[0-9a-f]{8}\.json",
        r"checkpoints/pack-0000000000-ta-01ABC-[0-9a-f]{8}\.safetensors",
        r"checkpoints/pack-0000000003-ta-01ABC-[0-9a-f]{8}\.safetensors",
    ]
    assert len(files) == len(expected)
    for pattern in expected:
        assert any(re.fullmatch(pattern, file) for file in files), pattern


def test_run_json_is_written_once(volume):
    Training(volume).fit(2, config={"epochs": 1}, may_change=("epochs",))
    path = directory(volume) / "run.json"
    first = path.read_bytes()
    content = json.loads(first)
    assert content["config"] == {"epochs": 1}
    assert content["seed"] == 0
    assert re.fullmatch(r"[0-9a-f]{64}", content["digest"])
    assert content["versions"].keys() == {"modalkit", "python", "torch", "numpy"}
    Training(volume.next_container()).fit(3, config={"epochs": 2}, may_change=("epochs",))
    assert path.read_bytes() == first


def test_the_attempt_is_committed_before_user_code_runs(volume):
    with Training(volume).open(config={"lr": 1}) as run:
        (attempt,) = read_attempts(directory(volume))
        assert (attempt.number, attempt.cause, attempt.step) == (1, "running", 0)
        assert attempt.config == {"lr": 1}
        assert run.attempt == 1


def test_so_is_every_later_attempt_and_where_it_resumes(volume):
    Training(volume).fit(4)
    volume = volume.next_container()
    with Training(volume).open() as run:
        attempt = read_attempts(directory(volume))[-1]
        assert (attempt.number, attempt.cause, attempt.resumed_at) == (2, "running", 4)
        assert (run.attempt, run.resumed_at) == (2, 4)


def test_started_at_is_when_run_was_called(volume, monkeypatch):
    import time

    run = Training(volume).open()
    called = time.time()
    monkeypatch.setattr(time, "time", lambda: called + 100)
    with run:
        (attempt,) = read_attempts(directory(volume))
    assert called - 5 < attempt.started_at <= called


def test_a_new_run_commits_a_checkpoint_of_step_0_before_the_first_step(volume):
    with Training(volume).open():
        assert read(directory(volume)).step == 0


def test_no_file_of_ours_is_open_at_a_commit_or_reload(volume):
    """The Volume of these tests refuses open files as Modal does; no run here says that it did."""
    with Training(volume).open(checkpoints=modalkit.CheckpointPolicy(every_steps=1)) as run:
        for _ in run.steps(3):
            run.log(loss=1.0)
            assert not volume.open_files()
    assert "open_files" not in kinds(volume)


@pytest.mark.parametrize("ending", [None, ValueError, KeyboardInterrupt])
def test_files_that_the_program_holds_open_are_said_once_and_do_no_harm(volume, ending, capsys):
    with (volume.mount / "log.txt").open("w") as held:
        held.write("x")
        error = survive(lambda: Training(volume).fit(7, after=at(6, fail(ending or Exception))))
    assert isinstance(error, ending or Exception)
    assert read(directory(volume)).step == 6
    shown = capsys.readouterr().err
    assert shown.count("could not be reloaded") == 1
    assert shown.count("was not reloaded") == 1


def test_another_error_of_the_volume_is_not_swallowed(volume):
    def refuse() -> None:
        raise RuntimeError("Volume vo-1 was deleted")

    volume.commit = refuse
    with pytest.raises(RuntimeError, match="was deleted"), Training(volume).open():
        pass
    volume.reload = refuse
    with pytest.raises(RuntimeError, match="was deleted"), Training(volume).open():
        pass


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "run_id", ["", "-a", ".a", "a/b", "../a", "a b", "ä", "a" * 65, "a\n", None, 3]
)
def test_run_ids_that_are_no_safe_names_are_refused(volume, run_id):
    with pytest.raises(RunError, match="run id"):
        bare(volume, run_id)


@pytest.mark.parametrize("run_id", ["a", "9", "cats-1a2b", "A.b_c-D", "a" * 64])
def test_run_ids_that_are_names(volume, run_id):
    assert bare(volume, run_id).run_id == run_id


def test_a_mount_that_is_not_there_is_refused_with_the_line_that_adds_it(volume, tmp_path):
    with pytest.raises(RunError, match=r"volumes={'.*nowhere': volume}"):
        modalkit.run("r", volume=volume, mount=tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_another_configuration_is_refused_with_the_differences(volume):
    first = {"lr": 0.1, "epochs": 3, "model": {"width": 2}, "betas": (0.9, 0.99)}
    Training(volume).fit(1, config=first)
    second = {"lr": 0.2, "epochs": 3, "model": {"width": 4}, "betas": [0.9, 0.99], "new": None}
    before = sorted(directory(volume).rglob("*"))
    with pytest.raises(RunConfigMismatchError) as caught:
        Training(volume).fit(1, config=second)
    lines = str(caught.value).splitlines()
    assert lines[1:-1] == [
        "  lr: was 0.1, is 0.2",
        '  model: was {"width": 2}, is {"width": 4}',
        "  new: was absent, is null",
    ]
    assert "'r'" in lines[0]
    assert "may_change" in lines[-1]
    assert sorted(directory(volume).rglob("*")) == before


def test_another_seed_is_another_configuration(volume):
    Training(volume).fit(1, seed=1)
    with pytest.raises(RunConfigMismatchError, match="seed: was 1, is 2"):
        Training(volume).fit(1, seed=2)


def test_keys_named_in_may_change_may_differ(volume):
    Training(volume).fit(1, config={"epochs": 1, "lr": 1}, may_change=("epochs",))
    Training(volume).fit(2, config={"epochs": 2, "lr": 1}, may_change=("epochs",))
    Training(volume).fit(2, config={"lr": 1}, may_change=("epochs",))
    with pytest.raises(RunConfigMismatchError, match="lr: was 1, is 2"):
        Training(volume).fit(1, config={"epochs": 2, "lr": 2}, may_change=("epochs",))
    with pytest.raises(RunConfigMismatchError, match="epochs: was 1, is 2"):
        Training(volume).fit(1, config={"epochs": 2, "lr": 1})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"config": {"x": object()}}, "is not JSON"),
        ({"config": {"x": float("nan")}}, "is not JSON"),
        ({"may_change": "epochs"}, "with the comma"),
        ({"may_change": 3}, "may_change=3"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"seed": None}, "seed=None"),
        ({"model": 3}, "model=3.*no state"),
        ({"checkpoints": "x"}, "checkpoints='x': .*CheckpointPolicy"),
        ({"commits": modalkit.CheckpointPolicy()}, r"commits=.*pass a modalkit\.CommitPolicy"),
        ({"volume": "outputs"}, r"volume='outputs': .*modal\.Volume\.from_name"),
        ({"mount": 3}, "mount=3: .*text"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_the_call(volume, options, says):
    with pytest.raises(RunError, match=says):
        bare(volume, **options)
    assert not (volume.mount / "runs").exists()


def test_a_run_must_be_entered(volume):
    run = bare(volume)
    for use in (lambda: run.steps(3), lambda: run.log(x=1), run.checkpoint_now, run.summary):
        with pytest.raises(RunError, match=r"with modalkit\.run"):
            use()
    with run:
        pass
    for use in (lambda: run.steps(3), lambda: run.log(x=1), run.checkpoint_now):
        with pytest.raises(RunError, match=r"with modalkit\.run"):
            use()


@pytest.mark.parametrize("n", [-1, 1.0, "3", None, True])
def test_a_number_of_steps_that_is_none_is_refused_at_the_call(volume, n):
    with bare(volume) as run, pytest.raises(RunError, match="number of steps"):
        run.steps(n)


def test_objects_that_do_not_fit_are_an_error_that_the_ledger_shows(volume):
    Training(volume).fit(1)
    training = Training(volume)
    training.model = torch.nn.Linear(1, 1)
    training.optimizer = torch.optim.AdamW(training.model.parameters())
    before = training.model.weight.clone()
    with pytest.raises(CheckpointMismatchError, match=r"model\.0\.weight"), training.open():
        pytest.fail("the block was entered")
    assert torch.equal(training.model.weight, before)
    attempt = read_attempts(directory(volume))[-1]
    assert (attempt.number, attempt.cause) == (2, "error")
    assert attempt.error.startswith("CheckpointMismatchError: ")


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(volume):
    Training(volume).fit(4)
    for path in (volume.mount / "runs/r/checkpoints").glob("pack-*"):
        path.write_bytes(b"")
    volume.commit()
    with pytest.raises(CheckpointCorruptError, match=r"no checkpoint .* is whole .*ckpt-"):
        Training(volume).fit(4)


def test_a_damaged_checkpoint_is_passed_over_and_this_is_said(volume, uninterrupted, capsys):
    Training(volume).fit(7)
    newest = max((volume.mount / "runs/r/checkpoints").glob("pack-*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    volume.commit()
    summary = Training(volume).fit()
    assert summary["resumed_at"] == 6
    Outcome(volume).assert_equals(uninterrupted)
    assert re.search(
        r"ckpt-0000000007\S+ is not used: pack-\S+ has \d+ bytes", capsys.readouterr().err
    )
    assert "checkpoint_skipped" in kinds(volume)


def test_other_versions_than_last_time_are_said(volume, monkeypatch, capsys):
    Training(volume).fit(1)
    monkeypatch.setattr(np, "__version__", "9.9.9")
    Training(volume).fit(2)
    assert re.search(r"numpy was \S+, is 9\.9\.9: numbers may differ", capsys.readouterr().err)


# ---- steps --------------------------------------------------------------------------------------


def test_steps_are_those_still_to_do(volume):
    with bare(volume) as run:
        assert list(run.steps(3)) == [0, 1, 2]
        assert (run.step, run.resumed_at) == (3, None)
    with bare(volume) as run:
        assert (run.step, run.resumed_at) == (3, 3)
        assert list(run.steps(5)) == [3, 4]


def test_inside_the_body_step_is_that_step(volume):
    with bare(volume) as run:
        assert all(run.step == step for step in run.steps(3))


def test_a_step_is_done_when_the_loop_asks_for_the_next(volume):
    with bare(volume, checkpoints=modalkit.CheckpointPolicy(every_steps=1)) as run:
        steps = run.steps(9)
        assert next(steps) == 0
        assert read(directory(volume)).step == 0
        assert next(steps) == 1
        assert read(directory(volume)).step == 1


@pytest.mark.parametrize(
    ("leave", "done"), [("break", 4), ("data-ends", 4), ("data-ends-first", 3), ("held", 4)]
)
def test_a_loop_that_is_left_is_stopped_and_its_last_step_is_not_done(volume, leave, done, capsys):
    policy = modalkit.CheckpointPolicy(every_steps=2)
    with bare(volume, checkpoints=policy) as run:
        steps = run.steps(9)
        match leave:
            case "break":
                for step in run.steps(9):
                    if step == 4:
                        break
            case "data-ends":
                list(zip(run.steps(9), range(4), strict=False))
            case "data-ends-first":
                # The last body has run, but nobody asked for another step.
                list(zip(range(4), run.steps(9), strict=False))
            case "held":
                steps = run.steps(9)
                for step in steps:
                    if step == 4:
                        break
    summary = run.summary()
    assert (summary["status"], summary["step"]) == ("stopped", done)
    assert read(directory(volume)).step == done // 2 * 2, "a step that was begun is not saved"
    assert f"stopped: {done} steps are done" in capsys.readouterr().err
    attempt = read_attempts(directory(volume))[-1]
    assert (attempt.cause, attempt.step) == ("stopped", done)
    del steps


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(volume, uninterrupted):
    training = Training(volume)
    with training.open() as run:
        for _, batch in zip(run.steps(STEPS), training.loader(run), strict=False):
            training.step(run, batch)
            if run.step == 7:
                break
    Training(volume).fit()
    Outcome(volume).assert_equals(uninterrupted)


def test_a_step_that_was_left_is_begun_again_and_this_is_said(volume, capsys):
    """Finite data, one loop per epoch: the step that found no data is the next epoch's first."""
    seen = []
    with bare(volume) as run:
        for _epoch in range(3):
            for step, _ in zip(run.steps(9), range(3), strict=False):
                seen.append(step)
        assert list(run.steps(10)) == [9]
    assert seen == list(range(9))
    assert capsys.readouterr().err.count("is begun again") == 3 - 1


def test_of_two_loops_the_earlier_is_over(volume):
    with bare(volume) as run:
        first = run.steps(9)
        next(first)
        second = run.steps(9)
        assert next(second) == 0
        with pytest.raises(RunError, match="after a later one had begun"):
            next(first)
        assert next(second) == 1


def test_an_error_in_the_body_is_not_saved_is_recorded_and_raised_again(volume):
    error = survive(lambda: Training(volume).fit(after=at(7, fail(ValueError("nan loss")))))
    assert type(error) is ValueError
    assert read(directory(volume)).step == 6
    attempt = read_attempts(directory(volume))[-1]
    assert (attempt.cause, attempt.step, attempt.error) == ("error", 7, "ValueError: nan loss")
    assert list(read_metrics(directory(volume))) == list(range(8))


@pytest.mark.parametrize("name", ["InputCancellation", "CancelledError"])
def test_a_cancelled_call_is_recorded_as_such(volume, name):
    cancelled = type(name, (BaseException,), {})
    error = survive(lambda: Training(volume).fit(after=at(2, fail(cancelled))))
    assert type(error) is cancelled
    assert read_attempts(directory(volume))[-1].cause == "cancelled"


# ---- saving -------------------------------------------------------------------------------------


def saved_steps(volume) -> list[int]:
    return [e.fields["step"] for e in read_events(directory(volume)) if e.kind == "checkpoint"]


def committed_steps(volume) -> list[int]:
    return [e.fields["step"] for e in read_events(directory(volume)) if e.kind == "committed"]


def test_saved_every_so_many_steps_and_when_done(volume):
    with bare(volume, checkpoints=modalkit.CheckpointPolicy(every_steps=4)) as run:
        list(run.steps(10))
    assert saved_steps(volume) == [0, 4, 8, 10]


def test_saved_when_asked_once_the_step_is_done(volume):
    with bare(volume) as run:
        run.checkpoint_now()
        for step in run.steps(6):
            if step == 2:
                run.checkpoint_now()
                assert read(directory(volume)).step == 0
            if step == 3:
                assert read(directory(volume)).step == 3
        run.extra["best"] = 0.5
        run.checkpoint_now()
    assert saved_steps(volume) == [0, 0, 3, 6, 6]
    assert read(directory(volume)).values["extra"] == {"best": 0.5}


@pytest.mark.parametrize("is_held", [False, True])
def test_a_loop_left_after_asking_for_a_save_is_saved_and_its_step_counts(volume, is_held):
    with bare(volume) as run:
        steps = run.steps(9) if is_held else None
        for step in steps or run.steps(9):
            if step == 2:
                run.checkpoint_now()
                break
    assert read(directory(volume)).step == 3
    assert (run.summary()["status"], run.summary()["step"]) == ("stopped", 3)
    (stopped,) = (e for e in read_events(directory(volume)) if e.kind == "stopped")
    assert (stopped.fields["step"], stopped.fields["checkpoint"]) == (3, 3)
    del steps


def test_a_run_left_with_a_save_goes_on_as_if_it_had_not_been_left(volume, uninterrupted):
    training = Training(volume)
    with training.open(checkpoints=modalkit.CheckpointPolicy(every_steps=100)) as run:
        # The data comes first and ends: the last body has run, and nobody asks for another step.
        for batch, _ in zip(itertools.islice(training.loader(run), 5), run.steps(STEPS)):  # noqa: B905
            training.step(run, batch)
            run.checkpoint_now()
    assert read(directory(volume)).step == 5
    Training(volume).fit()
    Outcome(volume).assert_equals(uninterrupted)


def test_a_step_that_ends_in_an_error_is_not_saved_though_it_was_asked_for(volume):
    def body() -> None:
        with bare(volume) as run:
            for _ in run.steps(3):
                run.checkpoint_now()
                raise ValueError

    assert isinstance(survive(body), ValueError)
    assert read(directory(volume)).step == 0


def test_asking_after_the_loop_was_left_is_no_word_for_its_step(volume, capsys):
    """The loop may have been left because its data ended: nothing of that step was done."""
    with bare(volume) as run:
        list(zip(run.steps(9), range(3), strict=False))
        run.checkpoint_now()
    assert read(directory(volume)).step == 0
    shown = capsys.readouterr().err
    assert "the newest checkpoint is of step 0; the one that was asked for is not there" in shown


def test_a_save_on_the_way_out_that_fails_is_recorded(volume, monkeypatch):
    from modalkit.checkpoint import pack

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def body() -> None:
        with bare(volume) as run:
            for _ in run.steps(3):
                run.checkpoint_now()
                monkeypatch.setattr(pack, "write_pack", refuse)
                break

    assert isinstance(survive(body), CheckpointError)
    assert read_attempts(directory(volume))[-1].cause == "error"


def test_what_was_asked_for_is_committed_whatever_the_policy(volume):
    commits = modalkit.CommitPolicy(on_checkpoint=False, final=False)
    policy = modalkit.CheckpointPolicy(every_steps=2)
    with bare(volume, checkpoints=policy, commits=commits) as run:
        for step in run.steps(9):
            if step == 4:
                run.checkpoint_now()
    assert read(directory(volume)).step == 5


def test_policies_decide_what_is_committed(volume):
    policy = modalkit.CheckpointPolicy(every_steps=2)
    for final, step in ((False, 0), (True, 5)):
        run_id = f"final-{final}"
        commits = modalkit.CommitPolicy(on_checkpoint=False, final=final)
        with bare(volume, run_id, checkpoints=policy, commits=commits) as run:
            list(run.steps(5))
        assert read(directory(volume, run_id)).step == step


def test_only_the_last_checkpoints_are_kept(volume):
    policy = modalkit.CheckpointPolicy(every_steps=1, keep_last=2)
    with bare(volume, checkpoints=policy) as run:
        list(run.steps(6))
    steps = sorted(p.name[5:15] for p in (directory(volume) / "checkpoints").glob("ckpt-*"))
    assert [int(step) for step in steps] == [5, 6]


def test_a_disk_that_is_full_ends_the_run_with_the_checkpoint_before(volume, monkeypatch):
    from modalkit.checkpoint import pack

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    training = Training(volume)
    hook = at(4, lambda: monkeypatch.setattr(pack, "write_pack", refuse))
    with pytest.raises(CheckpointError, match="step 6 could not be written"):
        training.fit(before=hook)
    assert read(directory(volume)).step == 3
    assert not list((volume.mount / "runs/r/checkpoints").glob(".tmp*"))


# ---- log, extra, summary ------------------------------------------------------------------------


def test_extra_is_saved_and_restored(volume):
    with bare(volume, checkpoints=modalkit.CheckpointPolicy(every_steps=1)) as run:
        assert run.extra == {}
        for step in run.steps(3):
            run.extra["best"] = {"acc": step / 3, "at": (step, None)}
    with bare(volume) as run:
        assert run.extra == {"best": {"acc": 2 / 3, "at": (2, None)}}


def test_extra_that_cannot_be_stored_is_named(volume):
    with bare(volume) as run:
        run.extra["f"] = lambda: None
        with pytest.raises(CheckpointError, match=r"run\.extra\.f: .*function"):
            run.checkpoint_now()


def test_the_summary_of_a_finished_run(volume):
    summary = Training(volume).fit()
    assert summary == {
        "run_id": "r",
        "status": "finished",
        "step": STEPS,
        "attempts": 1,
        "resumed_at": None,
        "recomputed_steps": 0,
        "metrics": read_metrics(directory(volume))[STEPS - 1],
        "checkpoint": f"checkpoints/{read(directory(volume)).file}",
    }


def test_the_summary_counts_attempts_and_what_was_computed_twice(volume):
    survive(lambda: Training(volume).fit(after=at(4, fail(ValueError))))
    survive(lambda: Training(volume).fit(after=at(8, fail())))
    summary = Training(volume).fit()
    assert (summary["attempts"], summary["resumed_at"], summary["recomputed_steps"]) == (
        3,
        6,
        1 + 2,
    )


def test_metrics_of_the_summary_are_the_last_value_of_each(volume):
    def body(stop: int | None) -> dict:
        with bare(volume, checkpoints=modalkit.CheckpointPolicy(every_steps=1)) as run:
            for step in run.steps(6):
                if step == stop:
                    raise ValueError
                run.log(loss=torch.tensor(step / 2))
                if step == 1:
                    run.log(val=0.5)
            run.log(acc=float("nan"))
        return run.summary()

    survive(lambda: body(4))
    summary = body(None)
    assert (summary["metrics"]["loss"], summary["metrics"]["val"]) == (2.5, 0.5)
    assert str(summary["metrics"]["acc"]) == "nan"
    assert str(body(None)["metrics"]["acc"]) == "nan", "and when it is called again"


def test_a_finished_run_called_again_returns_its_summary_and_says_so(volume, capsys):
    first = Training(volume).fit()
    before = {p.name for p in (directory(volume) / "checkpoints").iterdir()}
    capsys.readouterr()
    again = Training(volume)
    assert again.fit() == first
    assert not again.seen
    assert f"nothing left to do: {STEPS} of {STEPS} steps are done" in capsys.readouterr().err
    assert {p.name for p in (directory(volume) / "checkpoints").iterdir()} == before
    assert [a.cause for a in read_attempts(directory(volume))] == ["finished", "finished"]


def test_fewer_steps_than_are_done_are_nothing_left_to_do(volume):
    first = Training(volume).fit(8)
    assert Training(volume).fit(5) == first


def test_a_finished_run_asked_for_more_goes_on(volume, uninterrupted):
    Training(volume).fit(5)
    summary = Training(volume.next_container()).fit(STEPS)
    Outcome(volume).assert_equals(uninterrupted)
    assert (summary["resumed_at"], summary["step"], summary["attempts"]) == (5, STEPS, 2)


def test_a_summary_inside_the_block_is_of_that_moment(volume):
    with bare(volume) as run:
        for step in run.steps(2):
            run.log(loss=step)
            summary = run.summary()
            assert (summary["status"], summary["step"]) == ("stopped", step)
            assert summary["metrics"] == {"loss": step}
        assert run.summary()["status"] == "finished"


# ---- generators ---------------------------------------------------------------------------------


def draws() -> tuple:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_new_run_draws_from_its_seed_alone(volume):
    def first_draws(run_id: str, seed: int) -> tuple:
        draws()
        with bare(volume, run_id, seed=seed) as run:
            return next(draws() for _ in run.steps(1))

    assert first_draws("a", 0) == first_draws("b", 0)
    assert first_draws("c", 0) != first_draws("d", 1)


def test_ranks_draw_different_numbers(volume, monkeypatch):
    seen = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with bare(volume, f"rank-{rank}") as run:
            seen.append(next(draws() for _ in run.steps(1)))
    assert all(a != b for a, b in zip(*seen, strict=True))
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(RunError, match="RANK='first'"), bare(volume, "x"):
        pass


def generators() -> dict:
    return {**seeding.capture(), "torch": torch.get_rng_state().tolist()}


@pytest.mark.parametrize("ending", [None, KeyboardInterrupt, ValueError])
def test_generators_are_left_as_they_were_found(volume, ending):
    training = Training(volume)
    before = generators()
    survive(lambda: training.fit(3, after=at(2, fail(ending)) if ending else lambda run: None))
    np.testing.assert_equal(generators(), before)


def test_entering_in_vain_leaves_generators_too(volume):
    Training(volume).fit(1, config={"a": 1})
    training = Training(volume)
    before = generators()
    assert isinstance(survive(lambda: training.fit(1, config={"a": 2})), RunConfigMismatchError)
    np.testing.assert_equal(generators(), before)


def test_a_run_renews_the_entropy_of_a_container_that_was_restored_from_a_snapshot(
    volume, monkeypatch
):
    """A plain function has no hooks; what it draws after a run must be this container's own."""
    with unchanged_generators():
        drawn = []
        for container in ("ta-1", "ta-2", "ta-2"):
            monkeypatch.setenv("MODAL_TASK_ID", container)
            random.seed(7)
            with bare(volume):
                pass
            drawn.append(random.random())
        expected = random.Random(7).random()
        assert expected not in drawn[:2]
        assert drawn[2] == expected, "a seed that the program set in this container stays"


def test_a_lost_ledger_does_not_make_new_checkpoints_the_older_ones(volume):
    for n in (2, 4):
        Training(volume).fit(n)
    shutil.rmtree(volume.mount / "runs/r/attempts")
    volume.commit()
    summary = Training(volume).fit(6, checkpoints=modalkit.CheckpointPolicy(keep_last=1))
    loaded = read(directory(volume))
    assert (loaded.step, loaded.epoch, summary["attempts"]) == (6, 3, 3)


def test_a_whole_checkpoint_outlives_a_newer_damaged_one(volume, uninterrupted):
    policy = modalkit.CheckpointPolicy(every_steps=3, keep_last=2)
    Training(volume).fit(6, checkpoints=policy)
    newest = max((volume.mount / "runs/r/checkpoints").glob("pack-*"))
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    volume.commit()
    policy = modalkit.CheckpointPolicy(every_steps=3, keep_last=1)
    for _ in range(2):
        volume = volume.next_container()
        training = Training(volume)

        def kill(volume=volume) -> None:
            volume.commit = fail(Killed)
            raise Killed

        hook = at(4, kill)
        error = survive(lambda fit=training.fit, hook=hook: fit(before=hook, checkpoints=policy))
        assert isinstance(error, Killed)
        assert training.seen[0][0] == 3
    Training(volume.next_container()).fit()
    Outcome(volume).assert_equals(uninterrupted)


@pytest.mark.parametrize(
    "content", ["", '{"config": {"lr"', "{}", "[]", '{"config": 1, "seed": 0}']
)
def test_a_run_file_that_cannot_be_read_is_no_first_call(volume, content):
    Training(volume).fit(1, config={"lr": 1})
    path = volume.mount / "runs/r/run.json"
    path.write_text(content)
    with pytest.raises(RunError, match=r"run\.json cannot be read .*remove the file"):
        Training(volume).fit(1, config={"lr": 2})
    assert path.read_text() == content


def test_a_run_whose_checkpoints_are_gone_does_not_start_over(volume):
    Training(volume).fit(4)
    shutil.rmtree(volume.mount / "runs/r/checkpoints")
    volume.commit()
    with pytest.raises(CheckpointCorruptError, match="none is there"):
        Training(volume).fit(4)


def test_a_resumed_attempt_knows_how_long_a_save_took(volume):
    real = volume.commit

    def slow() -> None:
        time.sleep(0.3)
        real()

    volume.commit = slow
    with bare(volume, checkpoints=modalkit.CheckpointPolicy(every_steps=1)) as run:
        list(run.steps(2))
    volume = volume.next_container()
    with bare(volume) as run:
        assert run._saving_s() >= 0.3
