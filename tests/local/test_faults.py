"""Which of several faults strikes an RPC, by the table alone."""

from google.protobuf.empty_pb2 import Empty

from modalkit.local.faults import Fault, FaultTable


def struck(table: FaultTable, numbers: list[int]) -> list[int]:
    """Let one RPC pass; return how often each fault has struck since the beginning."""
    table.strike("VolumeCommit", "client", Empty())
    return [table.strikes(number) for number in numbers]


def planted(*faults: dict[str, object]) -> tuple[FaultTable, list[int]]:
    table = FaultTable(str)
    return table, [table.plant(Fault(rpc="VolumeCommit", **fields)) for fields in faults]


def test_a_fault_behind_the_answer_of_another_strikes_the_next_time():
    table, numbers = planted({"status": "ABORTED"}, {"status": "INTERNAL"}, {"delay_s": 1.0})
    assert struck(table, numbers) == [1, 0, 0]
    assert struck(table, numbers) == [1, 1, 0]
    assert struck(table, numbers) == [1, 1, 1]
    assert struck(table, numbers) == [1, 1, 1]


def test_a_delay_before_an_answer_acts_too():
    table, numbers = planted({"delay_s": 1.0}, {"status": "ABORTED"})
    assert struck(table, numbers) == [1, 1]


def test_what_is_not_carried_out_loses_no_answer():
    table, numbers = planted({"status": "ABORTED", "applied": True}, {"status": "INTERNAL"})
    assert struck(table, numbers) == [0, 1]
    assert struck(table, numbers) == [1, 1]


def test_the_rpcs_before_the_nth_are_counted_behind_other_answers_too():
    table, numbers = planted({"status": "ABORTED", "times": 2}, {"status": "INTERNAL", "nth": 3})
    assert [struck(table, numbers) for _ in range(4)] == [[1, 0], [2, 0], [2, 1], [2, 1]]
