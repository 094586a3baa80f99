"""Reading packages, ENV and WORKDIR from recorded Dockerfile commands."""

from __future__ import annotations

import pytest

from modalkit.local.image_commands import ImageFacts, parse

# As modal 1.6.4 records Image.debian_slim() with builder 2025.06.
DEBIAN_SLIM = [
    "FROM python:3.11.12-slim-bookworm",
    "RUN apt-get update",
    "RUN apt-get install -y gcc gfortran build-essential",
    "RUN pip install --upgrade pip wheel uv",
    "RUN echo 'debconf debconf/frontend select Noninteractive' | debconf-set-selections",
    'CMD ["sleep", "172800"]',
]
UV_INSTALL = (
    "RUN /.uv/uv pip install --python $(command -v python) --compile-bytecode"
    " 'fastapi[standard]' torch==2.9.0"
)


def test_modals_own_base_says_nothing_but_its_packages():
    assert parse(DEBIAN_SLIM) == ImageFacts(packages=frozenset({"pip", "wheel", "uv"}))


@pytest.mark.parametrize(
    ("command", "packages"),
    [
        ("RUN python -m pip install a b==1", {"a", "b"}),
        ("RUN python -m pip install 'numpy>=1,<3' --extra-index-url https://x --pre", {"numpy"}),
        (UV_INSTALL, {"fastapi[standard]", "torch"}),
        ("RUN pip install Scikit_Image 'a[X,b_c]>1' 'd @ https://x/d.zip'",
         {"scikit-image", "a[b-c,x]", "d"}),
        ("RUN uv pip install --system -U --index-url=https://x a~=1.0 b!=2", {"a", "b"}),
        ("RUN --mount=type=cache,target=/c PIP_NO_CACHE=1 pip3.11 --quiet install a", {"a"}),
        ("RUN pip install a \\\n  b", {"a", "b"}),
        ("RUN pip install torch==2.9 --find-links https://x; pip install b", {"torch", "b"}),
        ("RUN pip install ./dist/my_pkg-1.0-py3-none-any.whl", {"my-pkg"}),
        ("RUN pip install 'git+https://x/y.git@v1#egg=Some.Name'", {"some-name"}),
        ("RUN pip install 'a; python_version < \"3.9\"'", {"a"}),
    ],
)  # fmt: skip
def test_install_commands_are_read(command, packages):
    facts = parse([command])
    assert facts.packages == packages
    assert facts.not_run == facts.unread == ()


@pytest.mark.parametrize(
    ("command", "packages", "unread"),
    [
        ("RUN apt-get install -y git", set(), False),
        ("RUN echo 'unbalanced", set(), False),
        ("COPY ./weights /root/weights", set(), False),
        ("RUN pip install foo && make", {"foo"}, False),
        ("RUN pip install -r requirements.txt foo", {"foo"}, True),
        ("RUN pip install --requirement=requirements.txt", set(), True),
        ("RUN pip install -e . foo", {"foo"}, True),
        ("RUN pip install git+https://x/y.git", set(), True),
        ("RUN pip install .", set(), True),
        ("RUN micromamba install -n base -y numpy", set(), True),
        ("RUN /.uv/uv sync --project=/.uv --frozen", set(), True),
        ('RUN bash -c "pip install foo"', set(), True),
    ],
)
def test_what_is_not_run_is_said(command, packages, unread):
    """And whether it may bring packages that are not known."""
    facts = parse([command])
    assert facts.packages == packages
    assert facts.not_run == (command,)
    assert facts.unread == ((command,) if unread else ())


@pytest.mark.parametrize(
    ("image", "unread"),
    [
        ("base", False),
        ("nvidia/cuda:12.8.1-devel-ubuntu24.04", False),
        ("docker.io/library/python:3.12@sha256:00", False),
        ("ubuntu", False),
        ("pytorch/pytorch:2.9", True),
        ("registry.example:5000/python", True),
    ],
)
def test_a_foreign_base_may_bring_any_package(image, unread):
    assert bool(parse([f"FROM {image}"]).unread) == unread


@pytest.mark.parametrize(
    ("commands", "env"),
    [
        (["ENV A='x y'"], {"A": "x y"}),
        (['ENV A=1 B="two words" C='], {"A": "1", "B": "two words", "C": ""}),
        (["ENV A one two"], {"A": "one two"}),
        (["ENV A=1", "ENV A=2"], {"A": "2"}),
        (["ENV A=/x", "ENV B=$A/y C=${A}z"], {"A": "/x", "B": "/x/y", "C": "/xz"}),
        (["ENV A='$HOME'"], {"A": "$HOME"}),
        (["ENV A='it'\"'\"'s'"], {"A": "it's"}),
        (["ENV PATH=/.uv/.venv/bin:$PATH"], {}),
        (["ENV A='open"], {}),
    ],
)  # fmt: skip
def test_env(commands, env):
    assert parse(commands).env == env


@pytest.mark.parametrize(
    ("commands", "workdir"),
    [
        ([], None),
        (["WORKDIR /srv"], "/srv"),
        (["WORKDIR /srv", "WORKDIR app"], "/srv/app"),
        (["ENV D=/data", "WORKDIR $D/x"], "/data/x"),
    ],
)
def test_workdir(commands, workdir):
    assert parse(commands).workdir == workdir
