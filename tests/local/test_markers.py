"""Environment markers."""

import sys

import pytest

from modalkit.local.markers import holds


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        ("a", True),
        ("a>=1; python_version < '3.9'", False),
        ("a; python_version >= '3.10'", True),  # as numbers, not as text
        ("a; python_version == '3.12'", True),
        ("a; '3.13' > python_version", True),
        ("a; python_full_version >= '3.12.0'", True),
        ("a; python_full_version == '3.12.*'", True),
        ("a; python_full_version == '3.11.*'", False),
        ("a; python_full_version != '3.11.*'", True),
        ("a; python_full_version <= '3.12'", True),
        (f"a; sys_platform == '{sys.platform}'", True),
        ("a; sys_platform == 'win32' or os_name == 'nt'", False),
        ("a; (sys_platform == 'win32' or os_name == 'posix') and python_version > '3'", True),
        ("a; extra == 'Test_x'", True),
        ("a; extra == 'other'", False),
        ("a; 'linux' in sys_platform", sys.platform == "linux"),
        ("a; python_version not in '3.8 3.9'", True),
        ("a; unheard_of == 'x'", True),
        ("a; this is no marker", True),
    ],
)
def test_what_can_be_decided_is(requirement: str, expected: bool) -> None:
    assert holds(requirement, python="3.12", extra="test-x") is expected


def test_an_extra_may_be_unknown() -> None:
    assert holds("a; extra == 'other'", extra=None)
    assert not holds("a; extra == 'other' and sys_platform == 'win32'", extra=None)
