"""
What the plane models, row by row: the source of docs/reference/local-plane.md.

A row says what somebody who knows Modal would look for. What is modelled names the test that
fails without it; a test of ours checks that those tests exist.
"""

from __future__ import annotations

import enum
from typing import Final

import attrs


class Status(enum.Enum):
    """How far a row is modelled."""

    MODELLED = "modelled"
    PARTLY = "partly"
    NOT = "not modelled"


@attrs.frozen
class Row:
    """
    One semantic.

    Attributes:
        feature: In the words of Modal's users.
        status: How far.
        how: What is different here, or what is said instead; empty where nothing is.
        tests: Where it is proved: `file::test` below `tests/`.
    """

    feature: str
    status: Status
    how: str = ""
    tests: tuple[str, ...] = ()


def _yes(feature: str, *tests: str, how: str = "") -> Row:
    return Row(feature, Status.MODELLED, how, tests)


def _partly(feature: str, how: str, *tests: str) -> Row:
    return Row(feature, Status.PARTLY, how, tests)


def _no(feature: str, how: str) -> Row:
    return Row(feature, Status.NOT, how)


CALLING = "local/test_calling.py::test_"
SHAKING = "local/test_shaking.py::test_"
CALLS = "local/test_calls.py::test_"
SCALING = "local/test_scaling.py::test_"
ENDINGS = "local/test_endings.py::test_"
LIFECYCLE = "local/test_lifecycle.py::test_"
DEPLOY = "local/test_deployments.py::test_"
APPS = "local/test_apps.py::test_"
DICTS = "local/test_dicts.py::test_"
HANDLES = "local/test_handles.py::test_"
QUEUES = "local/test_queues.py::test_"
SECRETS = "local/test_secrets.py::test_"
LEAVES = "local/test_leaves_nothing.py::test_"
KINDS = "local/test_volume_kinds.py::test_"
WIRE = "local/test_volumes_over_the_wire.py::test_"
FILES = "local/test_image_files.py::test_"
IMAGES = "local/test_image_reports.py::test_"
GUARD = "local/test_guard.py::test_"
GPUS = "local/test_gpus.py::test_"
KEEP = "local/test_keep.py::test_"
KEPT = "local/test_kept.py::test_"

AREAS: Final[dict[str, tuple[Row, ...]]] = {
    "Calls": (
        _yes(
            "`.remote()`, `.spawn()`, `.get()` more than once",
            CALLS + "remote_returns_what_the_function_returns",
            CALLS + "spawn_gives_a_handle_whose_result_can_be_fetched_twice",
        ),
        _yes(
            "`.map()`, `.starmap()`, `.for_each()`, `.spawn_map()`, `kwargs=`, several iterators",
            CALLS + "map_keeps_the_order_of_its_inputs",
            CALLS + "starmap_for_each_and_spawn_map",
            CALLING + "map_takes_many_iterators_and_kwargs",
        ),
        _yes("`order_outputs=False`", CALLING + "map_without_order_yields_what_is_ready"),
        _yes(
            "`return_exceptions=True`",
            CALLS + "map_returns_the_exceptions_that_it_is_asked_to_return",
        ),
        _yes(
            "generators, `.remote_gen()`, sync and async",
            CALLS + "generators_stream_their_values",
            CALLING + "async_callers",
        ),
        _yes("`.aio` everywhere", CALLING + "async_callers"),
        _yes(
            "methods, class parameters, `.local()` beside `.remote()`",
            CALLING + "methods_parameters_and_generators_of_a_class",
        ),
        _yes(
            "`with_options`, `with_concurrency`, `with_batching`",
            CALLING + "variants_have_containers_and_options_of_their_own",
            CALLING + "with_concurrency_and_with_batching",
        ),
        _yes("calls from containers, to any depth", CALLING + "calls_are_nested_to_any_depth"),
        _yes(
            "`FunctionCall.from_id`, `.num_inputs()`, `.gather()`, `.get(timeout=)`",
            CALLING + "a_call_is_found_by_its_id_from_anywhere",
            CALLING + "gather_waits_for_all_in_order",
            CALLING + "a_result_that_is_not_there_yet_is_a_timeout",
        ),
        _yes(
            "`FunctionCall.cancel()`: `InputCancellation` in sync code, a cancelled task in async "
            "code, the other threads of a container run again",
            CALLING + "a_cancelled_call_raises_there_and_here",
            CALLING + "one_of_two_async_inputs_is_cancelled_alone",
            CALLING + "cancelling_one_of_two_threads_runs_the_other_again",
            CALLING + "cancelling_may_end_the_container",
        ),
        _yes("payloads of any size", CALLING + "large_payloads_of_every_kind_of_call"),
        _yes(
            "exceptions with their type and true traceback",
            CALLS + "an_exception_arrives_with_its_type_and_the_line_that_raised_it",
        ),
        _yes(
            "`current_function_call_id()`, `current_input_id()`: the same in every attempt",
            CALLING + "an_attempt_knows_its_call_and_input",
        ),
        _partly(
            "limits on waiting inputs (2,000 for `.remote`, 1,000,000 for `.spawn`)",
            "none here; `.map()` keeps 1,000 outstanding",
        ),
        _partly(
            "expiry: a waited-for call after 24 hours, or two minutes after its caller is gone; "
            "results after seven days",
            "by the plane's clock, looked at every 5 s",
            SHAKING + "a_result_is_given_up_after_seven_days",
        ),
    ),
    "Scaling": (
        _yes(
            "`min_containers`, `max_containers`, `buffer_containers`",
            SCALING + "min_containers_are_there_before_any_call_and_after_a_death",
            SCALING + "max_containers_is_never_exceeded",
            SCALING + "a_buffer_is_kept_while_there_is_work_and_no_longer",
            how="without `max_containers` as many as this machine has cores",
        ),
        _yes("`scaledown_window`", SCALING + "an_idle_container_ends_after_its_scaledown_window"),
        _yes("`single_use_containers`", SCALING + "a_single_use_container_takes_one_input"),
        _yes(
            "`@modal.concurrent`, `target_inputs` too",
            CALLS + "concurrent_inputs_share_a_container",
            SCALING + "beyond_its_target_a_container_goes_only_when_no_other_may_be_launched",
        ),
        _yes(
            "`@modal.batched`",
            CALLS + "batched_inputs_come_as_one_list",
            SCALING + "a_batch_waits_for_what_comes_within_its_time",
        ),
        _yes(
            "`Function.autoscaler.settings()`, `.update()`",
            SCALING + "settings_of_the_autoscaler_are_shown_and_overridden",
        ),
        _yes(
            "a redeploy: old containers finish, new ones run the new code, variants too",
            DEPLOY + "a_redeploy_starts_new_code_and_lets_the_old_finish",
        ),
        _partly(
            "`cpu=`",
            "`OMP_NUM_THREADS` and its like are set from it, rounded up; cores are not limited",
            SCALING + "libraries_are_told_how_many_cores_were_asked_for",
        ),
        _no(
            "`ephemeral_disk=`, `region=`, `cloud=`, `nonpreemptible=`, `i6pn=`",
            "accepted, without effect; the deploy warns; in `with_options` in silence",
        ),
    ),
    "Failure": (
        _yes(
            "`retries=`, counted apart from preemptions and lost containers",
            CALLS + "retries_run_the_same_input_until_it_succeeds",
            CALLS + "retries_end_with_the_last_error_when_the_policy_is_spent",
            LIFECYCLE + "a_preempted_input_goes_on_in_a_new_container",
        ),
        _yes(
            "`timeout=` per attempt; what an attempt answers later is not heard",
            CALLS + "an_input_that_outlasts_its_timeout_fails_and_its_container_ends",
            CALLING + "what_an_attempt_answers_after_its_timeout_is_not_heard",
        ),
        _yes(
            "`startup_timeout=`",
            SCALING + "a_container_that_does_not_start_in_time_fails_its_caller",
        ),
        _yes(
            "preemption: SIGINT, 30 s, SIGKILL, the same input in a new container",
            LIFECYCLE + "a_preempted_input_goes_on_in_a_new_container",
            ENDINGS + "a_preempted_attempt_is_run_again_after_it_saved",
        ),
        _yes(
            "a failing import or hook reaches the caller",
            CALLS + "a_failing_import_or_hook_reaches_the_caller",
        ),
        _yes(
            "a container that dies: its input runs again, eight times at most",
            CALLS + "an_input_that_kills_every_container_fails_at_last",
        ),
        _yes(
            "crash loops: an ephemeral app stops, a deployed one goes on ever more slowly",
            SCALING + "an_ephemeral_app_that_only_crashes_fails_its_calls_and_stops",
            SCALING + "a_deployed_function_that_only_crashes_is_started_ever_more_slowly",
            how="Modal's limits are not public; here three starts, then pauses of 1 s to 60 s",
        ),
        _partly(
            "`memory=(request, limit)`",
            "looked at every 0.25 s; a request alone limits nothing here",
            SCALING + "a_container_over_its_memory_limit_is_killed_and_its_caller_told",
        ),
        _yes(
            "no process outlives its container, however it left",
            ENDINGS + "what_a_container_started_ends_with_it",
            LEAVES + "a_plane_that_is_killed_leaves_no_container_and_no_directory",
        ),
    ),
    "Volumes": (
        _yes(
            "a private view per container: others see a file after `commit()` and `reload()`, a "
            "kill loses what was not committed",
            WIRE + "views_are_private_until_commit_and_reload",
            LIFECYCLE + "a_killed_container_loses_what_it_did_not_commit",
            WIRE + "what_a_kill_would_lose_is_named",
        ),
        _yes(
            "background commits, every 5 s and at the end",
            KINDS + "a_background_commit_takes_closed_files_or_half_written_ones_too",
            KINDS + "without_background_commits_nothing_is_committed_by_itself",
            how="Modal says every few seconds; `background_commit_s=0` turns them off",
        ),
        _yes(
            "`reload()` refuses open files and names them",
            WIRE + "reload_is_refused_while_files_are_open_and_names_them",
        ),
        _yes(
            "`read_only`, `sub_path`, the rules for mount paths",
            WIRE + "a_read_only_mount_refuses_writes",
            WIRE + "a_sub_path_is_made_and_mounted_alone",
            KINDS + "mounts_that_modal_refuses_are_refused_by_the_plane_too",
        ),
        _yes(
            "versions 1 and 2: `batch_upload`, `read_file`, `iterdir`, `copy_files`, "
            "`remove_file`, `rename`, `objects`, `ephemeral`, all `modal volume` commands but "
            "`dashboard`",
            WIRE + "uploads_can_be_listed_and_read_back",
            WIRE + "directories_are_uploaded_and_files_copied_as_by_cp",
            WIRE + "a_renamed_volume_keeps_its_id_and_files",
            WIRE + "all_volume_commands_of_modal_work",
        ),
        _yes(
            "a Volume that was deleted and made anew is another one to apps that mount it",
            WIRE + "a_volume_that_is_made_anew_is_not_the_one_that_the_app_mounts",
        ),
        _yes(
            "a full disk: `commit()` raises `RuntimeError` and damages no file",
            KINDS + "a_full_disk_fails_the_commit_and_damages_nothing",
            how="what Modal answers over a full disk is not documented",
        ),
        _partly(
            "Volumes of more than 64 MiB or 1,000 files",
            "shared by an overlay where the machine allows it, else copied for each container; in "
            "an overlay renaming a directory that was there before the container started fails, "
            "and one line says so",
            KINDS + "containers_share_the_files_of_a_large_volume_and_see_it_as_any_other",
        ),
        _no(
            "limits on size, files and concurrent commits; the refusal of hard links on version 1; "
            "`sync` as a commit on version 2; modes of directories, extended attributes",
            "the local file system decides, in silence",
        ),
    ),
    "Images and GPUs": (
        _yes(
            "`add_local_*`, `copy=True`, `env`, `workdir`: files at their paths, a private copy "
            "for each container",
            FILES + "files_are_at_the_paths_that_they_have_on_modal",
            FILES + "what_one_container_writes_no_other_sees",
        ),
        _partly(
            "packages",
            "none is installed: containers run in your own interpreter; what your modules import "
            "is compared with what the image installs (a warning, or an error with "
            "`strict_image`), and a package that is missing here or has another version is said",
            GUARD + "strict_it_is_not_found",
            IMAGES + "other_versions_and_what_is_missing_here_are_said_once",
        ),
        _partly(
            "images that are not built from install commands",
            "name what they bring with `provides=[...]`; until then one line says that imports are "
            "not checked",
            IMAGES + "provides_declares_an_opaque_base",
            IMAGES + "what_cannot_be_read_is_said_with_the_remedy",
        ),
        _no("`apt_install`, `run_commands`, `run_function`, `entrypoint`", "said, once per image"),
        _partly(
            "`gpu=`",
            "with `--gpus` a container gets as many of this machine's as it asks for, shared when "
            "they run out; without it none is visible",
            GPUS + "a_container_gets_as_many_as_it_asks_for",
            GPUS + "without_devices_none_is_visible_and_that_is_said_once",
        ),
    ),
    "Memory snapshots": (
        _yes(
            "deployed apps only; `snap=True` hooks before, the others after each restore",
            DEPLOY + "modal_run_takes_no_snapshot_and_a_deployed_app_does",
            LIFECYCLE + "hooks_run_in_order_and_a_class_parameter_arrives",
        ),
        _yes(
            "containers restored from one snapshot are the same process image",
            LIFECYCLE + "two_containers_restored_from_one_snapshot_are_the_same_process_image",
            how="by the fork engine; the inline engine goes on in the same process",
        ),
        _yes(
            "no GPU before a CPU snapshot",
            GPUS + "a_cpu_snapshot_is_made_without_and_restored_with",
        ),
        _no(
            "GPU memory snapshots",
            "the GPU is visible before the snapshot, nothing more; the deploy warns",
        ),
    ),
    "The plane itself": (
        _yes(
            "deployed apps, their calls' results (7 days) and accepted inputs outlive the plane, "
            "a killed one too, when it has a state directory",
            KEEP + "a_killed_plane_forgets_no_deployment_no_result_and_no_input",
            KEEP + "results_are_dropped_after_seven_days",
            KEPT + "a_call_stays_what_it_was",
            KEPT + "apps_made_by_name_and_later_tags_stay",
            how="logs and `--detach`ed apps are not kept; a `.map()` that waits goes on with the "
            "next plane, a `.remote_gen()` ends with an error of the connection",
        ),
        _yes(
            "a client that is gone takes its ephemeral app with it, not a detached one",
            LEAVES + "a_client_that_is_killed_takes_its_app_with_it",
            LEAVES + "a_detached_app_outlives_its_client",
        ),
        _partly("a clock to move", "the plane's; processes keep the machine's"),
    ),
    "Dicts, Queues and Secrets": (
        _yes(
            "`modal.Dict`: every method, `objects`, `from_id`, `ephemeral`, `modal dict`",
            DICTS + "it_is_a_dictionary",
            DICTS + "names_and_ids",
            DICTS + "the_dict_commands_of_modal_work",
            DICTS + "named_ones_outlive_a_killed_plane_and_others_do_not",
        ),
        _yes(
            "`Dict.put(skip_if_exists=True)` as a lock between containers",
            DICTS + "put_says_whether_it_put",
            HANDLES + "a_dict_is_a_lock_between_containers",
        ),
        _yes(
            "an entry expires after 7 days without a read or write",
            DICTS + "an_entry_that_is_not_used_for_a_week_is_gone",
        ),
        _yes(
            "`modal.Queue`: every method, partitions, `objects`, `ephemeral`, `modal queue`",
            QUEUES + "first_in_first_out",
            QUEUES + "partitions_are_apart",
            QUEUES + "names_and_ids",
            QUEUES + "the_queue_commands_of_modal_work",
            HANDLES + "containers_share_a_queue_and_no_item_comes_twice",
        ),
        _yes(
            "limits of a Queue, and the end of its partitions",
            QUEUES + "a_full_partition_is_full_until_there_is_room",
            QUEUES + "a_partition_holds_64_mib_and_keys_have_64_bytes",
            QUEUES + "a_partition_ends_a_while_after_its_last_put",
            how="a `put_many` that could never fit is refused, instead of waiting for ever; named "
            "Queues are kept with the state",
        ),
        _yes(
            "`modal.Secret`: `from_dict`, `from_name`, `from_dotenv`, `from_local_environ`, "
            "`required_keys`, `objects`, `modal secret`",
            SECRETS + "values_reach_containers_from_every_source",
            SECRETS + "what_is_not_there_is_said_with_modals_errors",
            SECRETS + "the_secret_commands_of_modal_work",
            SECRETS + "no_value_in_logs_errors_or_reprs",
            how="the words of the error about a missing key are ours; no time of the last use",
        ),
        _yes(
            "handles as arguments and results, and by name in containers",
            HANDLES + "queues_and_dicts_go_there_and_back",
            HANDLES + "volumes_go_there_and_back",
            HANDLES + "functions_methods_and_calls_go_there_and_back",
            HANDLES + "containers_find_objects_by_name",
        ),
        _partly(
            "the end of an `ephemeral` object, of its items, and of a `Secret.from_dict`",
            "they are there until the plane ends, not only as long as their block or app",
        ),
        _no("limits on the size of a Dict's values and updates", "none here, in silence"),
        _no("environments", "there is one, `main`; other names mean the same objects, in silence"),
    ),
    "Apps": (
        _yes("`App.lookup`, tags", APPS + "an_app_is_looked_up_or_made"),
        _yes(
            "`app.include`, subclasses of `modal.App`, `gpu=[...]`",
            APPS + "unusual_ways_to_make_an_app_work",
        ),
        _yes(
            "functions made inside of a function, `serialized=True`",
            APPS + "functions_made_inside_of_a_function_are_serialized",
        ),
        _yes(
            "`modal app list`, `history`, `stop`; `from_name(version=)`",
            APPS + "versions_are_kept_and_can_be_called",
            how="an old version finds functions of its app by the current version's names",
        ),
        _yes("suggestions for misspelt names", APPS + "a_misspelt_name_is_suggested"),
        _yes(
            "`modal app logs`, `modal container list` and `logs`, the `.logs` of a call, "
            "`.get_current_stats()`",
            APPS + "logs_stats_and_containers_are_shown",
            how="output of a container that runs several inputs at once belongs to none of them",
        ),
        _yes("`modal container stop`", APPS + "a_stopped_containers_input_runs_in_another"),
        _yes("`.get_call_graph()`", APPS + "the_call_graph_shows_who_called_whom"),
        _partly(
            "`modal run --detach`",
            "the app ends when all its accepted inputs are done; what Modal does about calls other "
            "than the last one is not documented",
            APPS + "a_detached_app_lives_until_its_calls_are_done",
        ),
        _partly(
            "`modal serve`",
            "the app runs, and anew when a file changes; its web endpoints are not served",
        ),
        _no("schedules", "accepted, never run; the deploy warns"),
        _no("web endpoints, Servers", "accepted, not served, no URL; the deploy warns"),
        _no(
            "`block_network`, `restrict_modal_access=`, Proxies",
            "accepted, without effect; the deploy warns",
        ),
        _no(
            "clusters, `CloudBucketMount`, `NetworkFileSystem`",
            "refused when the function is created",
        ),
        _no("Sandboxes, tunnels, `modal shell`, `modal app rollback`", "refused, by name"),
    ),
}
