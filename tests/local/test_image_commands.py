"""Reading packages, ENV and WORKDIR from recorded Dockerfile commands."""

from __future__ import annotations

import pytest

from modalkit.local import image_commands
from modalkit.local.image_commands import ImageFacts, Layer
from modalkit.local.image_packages import compare


def parse(commands, base=None, **layer):
    """Read one layer whose context files are their own text."""
    bases = {"base": base} if base else {}
    return image_commands.parse(Layer(tuple(commands), bases=bases, **layer))


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
    assert parse(DEBIAN_SLIM) == ImageFacts(
        base="python:3.11.12-slim-bookworm",
        python="3.11",
        packages=dict.fromkeys(["pip", "wheel", "uv"], ""),
    )


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
        ("RUN pip install 'a; python_version < \"3.9\"' 'b; python_version > \"3.9\"'", {"b"}),
        ('RUN bash -c "pip install foo"', {"foo"}),
        ("RUN set -eux; sudo -E pip install a", {"a"}),
        ("RUN uv add a", {"a"}),
        ("RUN uv --quiet --color never pip install a", {"a"}),
        ("RUN pip install -qU -chttps://x/c.txt -fhttps://y a", {"a"}),
        ("RUN pip install a > /log 2>&1 && pip install 'b<2' &>>/log; pip install c<d",
         {"a", "b", "c"}),
        ("RUN /opt/venv/bin/pip install a", {"a"}),
    ],
)  # fmt: skip
def test_install_commands_are_read(command, packages):
    facts = parse([command])
    assert set(facts.packages) == packages
    assert facts.not_run == facts.unread == ()


@pytest.mark.parametrize(
    ("command", "packages", "unread"),
    [
        ("RUN apt-get install -y git", set(), False),
        ("RUN echo 'unbalanced", set(), False),
        ("COPY ./weights /root/weights", set(), False),  # nothing was uploaded for it
        ("RUN pip install foo && make", {"foo"}, False),
        ("RUN pip install -r requirements.txt foo", {"foo"}, True),
        ("RUN pip install --requirement=requirements.txt", set(), True),
        ("RUN pip install -e . foo", {"foo"}, True),
        ("RUN pip install git+https://x/y.git", set(), True),
        ("RUN pip install .", set(), True),
        ("RUN /.uv/uv sync --project=/.uv --frozen", set(), True),
        ("RUN micromamba install -f /env.yml -n base --yes", set(), True),
        ("RUN git clone https://x/y && cd y && pip install .", set(), True),
        ("RUN python setup.py install", set(), True),
        ("COPY --from=0 /venv /venv", set(), True),
        ("COPY --from=ghcr.io/x/y /venv /venv", set(), True),
        ("COPY --from=python:3.12 /usr/bin/x /usr/bin/x", set(), False),
        ("RUN uv pip sync requirements.txt", set(), True),
        ("RUN pip install -Urrequirements.txt a", {"a"}, True),
        ("RUN uv pip install -r pyproject.toml", set(), True),
        ('ENTRYPOINT ["serve"]', set(), False),
    ],
)
def test_what_is_not_run_is_said(command, packages, unread):
    """And whether it may bring packages that are not known."""
    facts = parse([command])
    assert set(facts.packages) == packages
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


BASE = parse(["FROM python:3.12.10-slim-bookworm"])
PYPROJECT = """
[project]
name = "mine"
dependencies = ["numpy>=2", 'old; python_version < "3"']
optional-dependencies = {gpu = ["torch==2.9.1"], other = ["other"]}
[dependency-groups]
dev = ["pytest", {include-group = "more"}]
more = ["hypothesis"]
docs = ["sphinx"]
"""
UV_LOCK = """
[[package]]
name = "numpy"
version = "2.3.0"
dependencies = [
    {name = "under-it", extra = ["fast"]},
    {name = "on-windows", marker = "sys_platform == 'win32'"},
    {name = "old", marker = "python_full_version < '3.12'"},
    {name = "either"},
    {name = "of-a-fork", marker = "extra == 'extra-4-mine-gpu'"},
]
[[package]]
name = "either"
version = "2"
resolution-markers = ["python_full_version >= '3.12'"]
[[package]]
name = "either"
version = "1"
resolution-markers = ["python_full_version < '3.12'"]
[[package]]
name = "under-it"
version = "1.0"
[package.optional-dependencies]
fast = [{name = "speed"}]
[[package]]
name = "speed"
version = "0.1"
[[package]]
name = "not-wanted"
version = "9"
"""
UV_BEFORE_GROUPS = """
[project]
dependencies = ["numpy"]
[tool.uv]
dev-dependencies = ["pytest"]
"""
POETRY = """
[tool.poetry.dependencies]
python = "^3.12"
numpy = "^2.0"
Torch = {version = "2.9.1", extras = ["x"]}
maybe = {version = "1", optional = true}
other = {version = "1", optional = true}
apple = {version = "1", platform = "darwin"}
old = {version = "1", markers = "python_version < '3.12'"}
either = [{version = "1", markers = "python_version < '3.12'"},
          {version = "2", markers = "python_version >= '3.12'"}]
[tool.poetry.extras]
more = ["maybe"]
[tool.poetry.dev-dependencies]
ruff = "*"
[tool.poetry.group.dev.dependencies]
pytest = "*"
[tool.poetry.group.docs]
optional = true
[tool.poetry.group.docs.dependencies]
sphinx = "*"
"""
CONDA = """
name: base
channels: [conda-forge]
dependencies:
  - python=3.11
  - pytorch=2.1  # theirs for torch
  - conda-forge::numpy>=1.26
  - pip
  - pip:
    - einops==0.8
  - scipy
variables: {A: b}
"""


@pytest.mark.parametrize(
    ("files", "command", "packages"),
    [
        (
            {"/r.txt": "numpy==2.1  # why\n--index-url https://x\nfoo \\\n  --hash=sha256:00\n"},
            ["RUN python -m pip install -r /r.txt"],
            {"numpy": "==2.1", "foo": ""},
        ),
        (
            {"/a/r.txt": "-r more.txt\n--requirement=last.txt", "/a/more.txt": "b",
             "/a/last.txt": "c"},
            ["WORKDIR /a", "RUN pip install -r r.txt"],
            {"b": "", "c": ""},
        ),
        (
            {"/p/pyproject.toml": PYPROJECT},
            ["RUN cd /p && pip install -e '.[gpu]'"],
            {"mine": "", "numpy": ">=2", "torch": "==2.9.1"},
        ),
        (
            {"/.uv/pyproject.toml": PYPROJECT},
            ["RUN /.uv/uv sync --project=/.uv --no-install-workspace --extra=gpu --group=docs"],
            {"numpy": ">=2", "torch": "==2.9.1", "pytest": "", "hypothesis": "", "sphinx": ""},
        ),
        (
            {"/.uv/pyproject.toml": PYPROJECT, "/.uv/uv.lock": UV_LOCK},
            ["RUN /.uv/uv sync --project=/.uv --no-dev --frozen"],
            {"numpy": "==2.3.0", "under-it": "==1.0", "speed": "==0.1", "either": "==2",
             "of-a-fork": ""},
        ),
        (
            {"/tmp/poetry/pyproject.toml": POETRY},
            ["RUN python -m pip install poetry", "RUN cd /tmp/poetry && \\ ",
             "  poetry config virtualenvs.create false && \\ ", "poetry install --no-root"],
            {"poetry": "", "numpy": "^2.0", "torch[x]": "2.9.1", "either": "2", "pytest": "",
             "ruff": ""},
        ),
        (
            {"/p/pyproject.toml": POETRY,
             "/p/poetry.lock": '[[package]]\nname = "numpy"\nversion = "2.2"\n'
                               '[package.dependencies]\nunder = ">=1"\n'
                               'on-windows = {version = "1", markers = "os_name == \'nt\'"}\n'},
            ["RUN cd /p && poetry install --only main"],
            {"numpy": "==2.2", "torch": "", "either": "", "under": ""},
        ),
        (
            {"/p/pyproject.toml": POETRY},
            ["RUN poetry -C /p install -n --without=dev --with docs --extras 'more none'"],
            {"numpy": "^2.0", "torch[x]": "2.9.1", "either": "2", "maybe": "1", "sphinx": ""},
        ),
        (
            {"/p/pyproject.toml": POETRY},
            ["RUN cd /p && pip install '.[more]'"],
            {"numpy": "^2.0", "torch[x]": "2.9.1", "either": "2", "maybe": "1"},
        ),
        (
            {"/p/pyproject.toml": UV_BEFORE_GROUPS},
            ["RUN uv sync --project /p"],
            {"numpy": "", "pytest": ""},
        ),
        (
            {"/p/pyproject.toml": PYPROJECT},
            ["RUN uv --project /p sync --only-group docs"],
            {"sphinx": ""},
        ),
        (
            {"/p/pyproject.toml": PYPROJECT},
            ["RUN uv pip install -r /p/pyproject.toml --extra gpu"],
            {"numpy": ">=2", "torch": "==2.9.1"},
        ),
        (
            {"/r.txt": "a==1", "/s.txt": "b==2"},
            ["RUN uv pip sync --system /r.txt s.txt"],
            {"a": "==1", "b": "==2"},
        ),
        (
            {"/in/r.txt": "-rmore.txt\n-e./p[gpu]\n-chere.txt\n-i https://x", "/in/more.txt": "b",
             "/p/pyproject.toml": PYPROJECT},
            ["RUN pip install -r/in/r.txt"],
            {"b": "", "mine": "", "numpy": ">=2", "torch": "==2.9.1"},
        ),
        (
            {"/env.yml": CONDA},
            ["RUN micromamba install -f /env.yml -n base --yes"],
            {"torch": "==2.1.*", "numpy": ">=1.26", "einops": "==0.8", "scipy": ""},
        ),
        (
            {},
            ["RUN micromamba install pytorch=2.1 'numpy<2' -c conda-forge --yes"],
            {"torch": "==2.1.*", "numpy": "<2"},
        ),
    ],
)  # fmt: skip
def test_what_modals_methods_install_is_read_from_the_files_that_they_upload(
    files, command, packages
):
    copies = [f"COPY {path} {path}" for path in files]
    facts = parse(["FROM base", *copies, *command], base=BASE, context=files)
    assert facts.packages == packages
    assert facts.unread == ()


@pytest.mark.parametrize("told", ["", "[project]\nname = 'a'\ndynamic = ['dependencies']"])
def test_a_project_whose_dependencies_are_told_elsewhere_is_not_read(told):
    """In a setup.py, say."""
    files = {"/pyproject.toml": f"[build-system]\nrequires = ['setuptools']\n{told}"}
    line = "RUN pip install -e ."
    facts = parse(["FROM base", "COPY pyproject.toml /", line], base=BASE, context=files)
    assert (facts.packages, facts.unread) == ({}, (line,))


def test_markers_are_those_of_the_images_python():
    line = """RUN pip install "a; python_version < '3.8'" "b; python_version >= '3.8'" """
    assert set(parse(["FROM python:3.7-slim", line]).packages) == {"a"}
    assert set(parse(["FROM python:3.12-slim", line]).packages) == {"b"}


def test_a_requirements_file_with_an_unknown_line_names_the_others():
    context = {"/r.txt": "numpy\ngit+https://x/y.git\n-r elsewhere.txt\nscipy"}
    line = "RUN pip install -r /r.txt"
    facts = parse(["FROM base", "COPY /r.txt /r.txt", line], base=BASE, context=context)
    assert (set(facts.packages), facts.unread) == ({"numpy", "scipy"}, (line,))


@pytest.mark.parametrize(
    ("base", "packages"),
    [("FROM ubuntu:24.04", {"yaml", "cv2"}), ("FROM python:3.12-slim", set())],
)
def test_apts_python_packages_are_for_the_systems_python_only(base, packages):
    line = "RUN apt-get install -y git python3-yaml python3-opencv=4.6 python3-dev"
    facts = parse([base, line])
    assert set(facts.packages) == packages
    assert facts.not_run == (line,)


@pytest.mark.parametrize(
    ("commands", "layer", "python"),
    [
        (["FROM python:3.12.10-slim-bookworm"], {}, "3.12"),
        (["FROM ubuntu:24.04"], {}, None),
        (["FROM ubuntu:24.04", "COPY /python/. /usr/local"], {"python": "3.13"}, "3.13"),
        (["FROM mambaorg/micromamba:1", "RUN micromamba install -y python=3.11 pip"], {}, "3.11"),
    ],
)
def test_the_series_of_its_python(commands, layer, python):
    assert parse(commands, **layer).python == python


@pytest.mark.parametrize(
    ("copy", "files"),
    [
        ("COPY . /", {"/data/a", "/data/sub/b", "/top.txt", "/other.txt"}),
        ("COPY data /d", {"/d/a", "/d/sub/b"}),
        ("COPY data/a /named", {"/named"}),
        ("COPY data/a /in/", {"/in/a"}),
        (
            "COPY --chown=me:me top.txt other.txt here/",
            {"/srv/here/top.txt", "/srv/here/other.txt"},
        ),
        ("COPY *.txt .", {"/srv/top.txt", "/srv/other.txt"}),
        ("COPY data/*/b /x/", {"/x/b"}),
        ('COPY ["data/a", "/json"]', {"/json"}),
        ("COPY $WHAT /x", {"/x"}),
        ("COPY ../data/a /x", {"/x"}),  # Docker knows nothing above the context either
    ],
)
def test_copy_is_followed_as_docker_does(copy, files):
    names = ("/data/a", "/data/sub/b", "/top.txt", "/other.txt")
    commands = ["FROM base", "ENV WHAT=data/a", "WORKDIR /srv", copy]
    facts = parse(commands, base=BASE, context={name: name for name in names})
    assert set(facts.files) == files
    assert facts.not_run == ()


def test_a_dockerfile_with_stages_is_its_last_stage():
    facts = parse(
        """
# syntax=docker/dockerfile:1
ARG VERSION=3.11
FROM python:${VERSION}-slim AS build
RUN pip install built \\
    # with a comment
    torch==2.9.1
ENV LOST=1
WORKDIR /lost
COPY src /src
FROM pytorch/pytorch AS unused
FROM python:${VERSION}-slim
COPY --from=build /src /app
RUN <<EOF
pip install last
EOF
CMD ["x"]
""".splitlines(),
        context={"/src/a.py": "a"},
    )
    assert facts.python == "3.11"
    assert facts.packages == {"built": "", "torch": "==2.9.1", "last": ""}
    assert (facts.env, facts.workdir, facts.files) == ({}, None, {"/app/a.py": "a"})
    assert (facts.not_run, facts.unread) == ((), ())


def test_stages_are_named_by_their_place_too():
    facts = parse(
        """
FROM python:3.12 AS First
RUN pip install a
FROM python:3.12
RUN pip install b
FROM python:3.12
COPY --from=0 / /
COPY --from=1 / /
COPY --from=FIRST / /
""".splitlines()
    )
    assert set(facts.packages) == {"a", "b"}
    assert facts.unread == ()


def test_build_arguments_are_for_the_build_only():
    commands = ["FROM base", "ARG V=1", "ARG W", "RUN pip install a==$V b==${W}", "ENV X=$W"]
    facts = parse(commands, base=BASE, build_args={"W": "2"})
    assert facts.packages == {"a": "==1", "b": "==2"}
    assert facts.env == {"X": "2"}


def test_run_function_is_not_run():
    facts = parse([], base=BASE, function="download")
    assert facts.not_run == ("run_function(download)",)
    assert facts.python == "3.12"


@pytest.mark.parametrize(
    ("asked", "here", "differs"),
    [
        ("==2.9.1", "2.13.0", True),
        ("==2.13.0", "2.13.0+cpu", False),
        ("==2.13.0+cu128", "2.13.0+cpu", True),
        ("==2.13", "2.13.0", False),
        ("==2.13.*", "2.13.4", False),
        ("==2.1.*", "2.13.4", True),
        (">=2", "1.0", False),  # a range is not a pin
        ("", None, True),
        ("(apt)", None, False),
    ],
)
def test_a_pin_is_compared_with_the_version_here(asked, here, differs):
    [found] = compare({"torch": asked}, {"torch": here} if here else {})
    assert (found.asked, found.here, found.differs) == (asked, here, differs)
