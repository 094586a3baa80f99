"""The import guard, in a process of its own as in a container."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modalkit.local import boot

BOOT = Path(boot.__file__)


@pytest.fixture
def venv(tmp_path):
    """Distributions beside the interpreter's own: what a user's venv may hold."""
    site = tmp_path / "site"
    for name, modules, requires in (
        ("Scikit-Thing", ["skthing"], ["needed-by-thing", "extra-of-thing; extra == 'more'"]),
        ("needed-by-thing", ["needed"], ['deeper>=1; python_version >= "3"']),
        ("deeper", ["deeper"], []),
        ("extra-of-thing", ["extra_thing"], []),
        ("same-name", ["same_name"], []),
        ("lazy", ["lazy"], []),
    ):
        metadata = site / f"{name.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir(parents=True)
        lines = [f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {r}" for r in requires)]
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")
        (metadata / "top_level.txt").write_text("\n".join(modules))
        for module in modules:
            (site / f"{module}.py").write_text("value = 1\n")
    (site / "skthing.py").write_text("import needed, lazy\nvalue = 1\n")  # its own affair
    (site / "forgotten.py").write_text("value = 1\n")  # on the path, of no distribution
    return site


def run(venv, program, *packages, strict=False, more=(), env=(), **files):
    """Run a program as an app's module, guarded; returns the process."""
    place = venv.parent
    (place / "root").mkdir(exist_ok=True)
    for name, text in {"program": program, **files}.items():
        (place / "root" / f"{name}.py").write_text(text)
    spec = {
        "mounts": [],
        "scratch": str(place),
        "cwd": str(place / "root"),
        "guard": {
            "packages": packages,
            "client": ["grpclib", "protobuf"],
            "strict": strict,
            "roots": [str(place / "root")],
            **dict(more),
        },
        "fork_socket": None,
        "module": "program",
    }
    (place / "spec.json").write_text(json.dumps(spec))
    return subprocess.run(
        [sys.executable, BOOT, place / "spec.json"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(venv), "PATH": "/usr/bin:/bin", **dict(env)},
    )


MISSING = "the image does not install 'Scikit-Thing'; add .uv_pip_install(\"Scikit-Thing\") to it"


def test_a_package_that_the_image_lacks_is_named_with_its_line(venv):
    """By the distribution's name, which is not the module's, and once."""
    done = run(venv, "import json\nimport skthing\nfrom skthing import value\nimport skthing.x\n")
    assert done.stderr.splitlines()[0] == f"modalkit: program.py:2 imports 'skthing': {MISSING}"
    assert done.stderr.count("modalkit:") == 1


def test_what_compiled_code_imports_is_its_own_affair(venv):
    """It has no frame of its own: the app's module seems to import what it merely calls for."""
    program = "import pickle\nassert pickle.loads(b'cskthing\\nvalue\\n.') == 1\n"
    done = run(venv, program, strict=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_strict_it_is_not_found(venv):
    done = run(venv, "import skthing", strict=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == f"ModuleNotFoundError: No module named 'skthing' in the image: {MISSING}"


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("packages", "program"),
    [
        (["scikit-thing"], "import skthing"),
        (["SCIKIT_thing"], "import skthing"),
        (["scikit-thing"], "import needed, deeper"),  # required, and required by that
        (["scikit-thing[more]"], "import extra_thing"),
        (["same-name"], "import same_name"),
        ([], "import modal, grpclib, google.protobuf"),  # Modal mounts these
        ([], "import json, asyncio.tasks, xml.etree.ElementTree"),
        ([], "import helper\nfrom helper import x"),
        ([], "import __main__"),
    ],
)
def test_what_the_image_has_may_be_imported(venv, packages, program, strict):
    done = run(venv, program, *packages, strict=strict, helper="x = 1")
    assert (done.stderr, done.returncode) == ("", 0)


def test_extras_that_were_not_asked_for_are_missing(venv):
    done = run(venv, "import extra_thing", "scikit-thing", strict=True)
    assert '.uv_pip_install("extra-of-thing")' in done.stderr


def test_what_other_packages_import_is_their_own_affair(venv):
    """`skthing` imports `lazy`, which nothing requires; the app's own import of it is caught."""
    done = run(venv, "import skthing\nprint('fine')\nimport lazy", "scikit-thing", strict=True)
    assert done.stdout == "fine\n"
    assert "No module named 'lazy' in the image" in done.stderr


def test_imports_of_the_apps_other_modules_are_checked(venv):
    done = run(venv, "import helper", helper="def f():\n    import skthing\nf()")
    assert "helper.py:2 imports 'skthing'" in done.stderr


def test_import_module_is_checked_too(venv):
    done = run(venv, "import importlib\nimportlib.import_module('skthing')")
    assert "program.py:2 imports 'skthing'" in done.stderr


def test_local_code_that_was_not_mounted_is_named(venv):
    """An editable install or a directory on the path of the laptop."""
    done = run(venv, "import forgotten")
    assert '.add_local_python_source("forgotten")' in done.stderr


@pytest.mark.parametrize("copy", ["myproj.py", "myproj/core.py"])
def test_local_code_that_the_image_holds_by_copy_may_be_found_elsewhere_here(venv, copy):
    """An editable install is found before it."""
    here, image = venv.parent / "src", venv.parent / "root" / copy
    for file in (here / "myproj.py", image):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    editable(venv, here)
    program = f"import sys\nsys.path.insert(0, {str(here)!r})\nimport myproj"
    assert run(venv, program, strict=True).stderr == ""


def test_local_code_of_which_the_image_has_only_data_is_named(venv):
    (venv.parent / "root" / "myproj").mkdir(parents=True)
    (venv / "myproj.py").write_text("")
    editable(venv, venv)
    assert '.add_local_python_source("myproj")' in run(venv, "import myproj").stderr


def editable(venv, directory):
    """Note an editable install of `my-project`, whose module is `myproj`."""
    metadata = venv / "my_project-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-project\nVersion: 1.0\n")
    (metadata / "top_level.txt").write_text("myproj")
    origin = {"url": directory.as_uri(), "dir_info": {"editable": True}}
    (metadata / "direct_url.json").write_text(json.dumps(origin))


@pytest.fixture
def cloud(venv):
    """Two distributions below the namespace `google`, which Modal's client has a part of, too."""
    for name in ("thing", "other"):
        module = venv / "google" / "cloud" / name
        module.mkdir(parents=True)
        (module / "__init__.py").write_text("value = 1\n")
        metadata = venv / f"its_own_{name}-1.0.dist-info"
        metadata.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: its-own-{name}", "Version: 1.0", ""]
        (metadata / "METADATA").write_text("\n".join(lines))
        (metadata / "RECORD").write_text(f"google/cloud/{name}/__init__.py,,\n")
    return venv


@pytest.mark.parametrize(
    "program",
    [
        "import google.protobuf, google.cloud.thing as t",
        "from google.cloud import thing",
        "import importlib\nimportlib.import_module('google.cloud.thing')",
    ],
)
def test_below_a_namespace_the_distribution_with_the_files_counts(cloud, program):
    assert run(cloud, program, "its-own-thing", strict=True).stderr == ""
    done = run(cloud, program, "its-own-other", strict=True)
    assert "No module named 'google.cloud.thing' in the image" in done.stderr
    assert '.uv_pip_install("its-own-thing")' in done.stderr


def test_a_distribution_below_a_namespace_is_named_once(cloud):
    program = "import google.cloud.thing\nfrom google.cloud import thing, other\nimport google"
    done = run(cloud, program, "its-own-other")
    assert done.stderr.count("modalkit:") == done.stderr.count('its-own-thing")') == 1


HANDLED = [
    """
try:
    import skthing
except ImportError:
    print("without")
""",
    """
try:
    from skthing import value
except (KeyError, ModuleNotFoundError):
    print("without")
""",
    """
def f():
    try:
        import skthing
    except Exception:
        print("without")
f()
""",
    """
try:
    import skthing
except:
    print("without")
""",
    """
import contextlib
skthing = None
with contextlib.suppress(ImportError):
    import skthing
if skthing is None:
    print("without")
""",
]


@pytest.mark.parametrize("program", HANDLED)
def test_an_optional_import_goes_without_a_word(venv, program):
    done = run(venv, program)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("program", HANDLED)
def test_strict_an_optional_import_fails_as_on_modal(venv, program):
    done = run(venv, program, strict=True)
    assert (done.stdout, done.stderr) == ("without\n", "")


def test_an_import_in_a_try_for_something_else_is_reported(venv):
    done = run(venv, "try:\n    import skthing\nexcept KeyError:\n    pass")
    assert "imports 'skthing'" in done.stderr


def test_an_import_that_fails_anyway_fails_as_ever(venv):
    done = run(venv, "import not_there_at_all")
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: No module named 'not_there_at_all'"
    )
    assert "modalkit:" not in done.stderr


def test_the_clients_packages_do_not_bring_what_they_require(venv):
    """Modal mounts them one by one: `click` is among modal's requirements, and not mounted."""
    done = run(venv, "import click", strict=True)
    assert '.uv_pip_install("click")' in done.stderr


@pytest.mark.parametrize(("python", "fails"), [("3.12", False), ("2.7", True)])
def test_requirements_are_those_of_the_images_python(venv, python, fails):
    done = run(venv, "import deeper", "scikit-thing", strict=True, more={"python": python})
    assert (done.returncode == 1) is fails


def test_a_package_named_by_its_module_brings_what_it_requires(venv):
    """As apt's Python packages are: python3-skthing."""
    assert run(venv, "import skthing, needed", "skthing", strict=True).stderr == ""


def test_an_interpreter_below_the_code_is_not_the_apps_own(venv):
    """`/root/.venv`, say: what its packages import is their own affair."""
    roots = [str(venv.parent / "root"), str(Path(sys.prefix).parent)]
    done = run(venv, "import yaml_like", yaml_like="import sysconfig", more={"roots": roots})
    assert done.stderr == ""
    program = "import numpy\nimport numpy.testing\n"
    (venv.parent / "root" / "program.py").unlink()
    (venv.parent / "root").rename(venv.parent / "old")
    done = run(venv, program, "numpy", strict=True, more={"roots": roots})
    assert (done.returncode, done.stderr) == (0, "")


def test_the_users_own_site_packages_are_not_the_apps_own(venv):
    """`/root/.local`, say."""
    base = venv.parent / "root" / ".local"
    series = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    user_site = base / "lib" / series / "site-packages"
    user_site.mkdir(parents=True)
    (user_site / "theirs.py").write_text("import skthing")
    env = {"PYTHONUSERBASE": str(base), "PYTHONPATH": f"{user_site}:{venv}"}
    assert run(venv, "import theirs", "theirs", strict=True, env=env).stderr == ""
