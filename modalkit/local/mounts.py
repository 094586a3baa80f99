"""
Private mounts without root, by Linux namespaces: what a container sees at its mount paths.

The standard library only: this runs in the container's interpreter, before anything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NotRequired, TypedDict

# From <linux/sched.h> and <linux/mount.h>.
CLONE_NEWNS: Final = 0x20000
CLONE_NEWUSER: Final = 0x10000000
MS_RDONLY: Final = 1
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2
# What statvfs reports -> what mount wants: inside a user namespace a remount that drops one of
# these is refused. nosuid, nodev, noexec, noatime, nodiratime, relatime.
KEPT_FLAGS: Final = {2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}

OLD_ROOT: Final = ".modalkit-old-root"

_libc = ctypes.CDLL(None, use_errno=True)


class Mount(TypedDict):
    """
    One directory or file of the host, shown at a path of the container.

    With `overlay`, a directory with the layers `lower`, `upper` and `work`, they are merged in its
    `merged` first, where *source* is then.
    """

    source: str
    target: str
    read_only: bool
    overlay: NotRequired[str | None]


def enter(mounts: Iterable[Mount], scratch: str) -> None:
    """
    Move this process to a mount namespace of its own that shows `mounts` at their targets.

    The rest of the file system stays as it is. Targets need not exist, and nothing is made on
    the host for them.

    Args:
        mounts: What to show where.
        scratch: An existing directory, used as the place of the new root.

    Raises:
        OSError: The kernel or its configuration forbids it; see `remedy`.
    """
    mounts = _in_order(mounts)
    _unshare()
    _mount("none", "/", flags=MS_REC | MS_PRIVATE)
    _merge(mounts)
    root = Path(scratch, "root")
    root.mkdir(exist_ok=True)
    _mount("tmpfs", root, "tmpfs", data="mode=755")
    # Or the bind of the directory that holds `scratch` would hold the new root once more.
    _mount("none", root, flags=MS_UNBINDABLE)
    _mirror(Path("/"), root, {m["target"].strip("/"): Path(m["source"]).is_file() for m in mounts})
    old = root / OLD_ROOT
    old.mkdir()
    _call("pivot_root", os.fsencode(root), os.fsencode(old))
    os.chdir("/")
    # From here on a link in a target's path leads to where the container would be led.
    show(mounts, seen_at=f"/{OLD_ROOT}")
    _call("umount2", f"/{OLD_ROOT}".encode(), MNT_DETACH)
    Path("/", OLD_ROOT).rmdir()
    _mount("none", "/", flags=MS_REC | MS_PRIVATE)


def enter_again(mounts: Sequence[Mount]) -> None:
    """Give a forked child a namespace of its own, with its own mounts over its parent's."""
    _call("unshare", CLONE_NEWNS)
    _merge(mounts)
    show(_in_order(mounts))


def _in_order(mounts: Iterable[Mount]) -> list[Mount]:
    """Put the outer ones first, and resolve the links of sources while the host's root is here."""
    real: list[Mount] = [{**m, "source": os.path.realpath(m["source"])} for m in mounts]
    return sorted(real, key=lambda mount: mount["target"].count("/"))


def _merge(mounts: Iterable[Mount]) -> None:
    before = Path.cwd()
    for directory in {mount.get("overlay") for mount in mounts} - {None}:
        # Relative names: in an absolute path, commas and colons would have to be escaped. With
        # userxattr, root's overlays are as those of a user namespace.
        os.chdir(str(directory))
        layers = "lowerdir=lower,upperdir=upper,workdir=work,userxattr"
        _mount("overlay", "merged", "overlay", data=layers)
        os.chdir(before)


def show(mounts: Sequence[Mount], seen_at: str = "") -> None:
    """Bind each source to its target; sources are looked up below `seen_at`."""
    # All are opened first: an earlier target may hide a later source.
    opened = [os.open(seen_at + mount["source"], os.O_PATH) for mount in mounts]
    for mount, source in zip(mounts, opened, strict=True):
        target = Path(mount["target"])
        if not target.exists():  # inside another mount, which then gets it
            _make_room(target, is_file=not stat.S_ISDIR(os.fstat(source).st_mode))
        _mount(f"/proc/self/fd/{source}", target, flags=MS_BIND | MS_REC)
        os.close(source)
    for mount in mounts:
        if mount["read_only"]:
            reported = os.statvfs(mount["target"]).f_flag
            kept = sum(flag for bit, flag in KEPT_FLAGS.items() if reported & bit)
            _mount("none", mount["target"], flags=MS_BIND | MS_REMOUNT | MS_RDONLY | kept)


def remedy() -> str:
    """Say what to change on this machine so that private mounts work."""
    for path, forbidding, setting in (
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "=0"),
        ("kernel/unprivileged_userns_clone", "0", "=1"),
        ("user/max_user_namespaces", "0", "=15000"),
    ):
        with contextlib.suppress(OSError):
            if Path("/proc/sys", path).read_text().strip() == forbidding:
                return f"run `sudo sysctl {path.replace('/', '.')}{setting}`"
    return (
        "no sysctl forbids user namespaces here, so a sandbox does: in Docker, start the outer"
        " container with --cap-add SYS_ADMIN --security-opt seccomp=unconfined"
        " --security-opt apparmor=unconfined"
    )


def _unshare() -> None:
    if os.geteuid() == 0:
        # True root keeps its rights over files of other users, which a namespace would take.
        with contextlib.suppress(OSError):
            _call("unshare", CLONE_NEWNS)
            return
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", CLONE_NEWNS | CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _mirror(real: Path, shown: Path, targets: Mapping[str, bool]) -> None:
    """
    Fill `shown`, on the new root, with what `real` holds, and make room for mount points.

    Args:
        real: A directory of the host.
        shown: The same directory of the container.
        targets: Mount points below it, and whether each is a file.
    """
    below: dict[str, dict[str, bool]] = {}
    for path, is_file in targets.items():
        head, _, tail = path.partition("/")
        below.setdefault(head, {})[tail] = is_file
    # What this user may not read or look up stays empty; it was of no use to him before.
    with contextlib.suppress(OSError):
        for entry in real.iterdir():
            if entry.name not in below:
                with contextlib.suppress(OSError):
                    _repeat(entry, shown / entry.name)
    for name, tails in below.items():
        old, new = Path(os.path.realpath(real / name)), shown / name
        if "" in tails:
            _make_room(new, is_file=tails[""])
            continue
        new.mkdir()
        # With every mount point there already, one bind shows the whole directory.
        if all(_exists(old / tail, is_file=is_file) for tail, is_file in tails.items()):
            _mount(old, new, flags=MS_BIND | MS_REC)
        else:
            _mirror(old, new, tails)


def _exists(path: Path, *, is_file: bool) -> bool:
    with contextlib.suppress(OSError):
        return path.is_file() if is_file else path.is_dir()
    return False


def _make_room(path: Path, *, is_file: bool) -> None:
    (path.parent if is_file else path).mkdir(parents=True, exist_ok=True)
    if is_file:
        path.touch()


def _repeat(real: Path, shown: Path) -> None:
    if real.is_symlink():
        shown.symlink_to(real.readlink())
        return
    is_directory = real.is_dir()
    _make_room(shown, is_file=not is_directory)
    _mount(real, shown, flags=MS_BIND | (MS_REC if is_directory else 0))


def _mount(
    source: Path | str, target: Path | str, kind: str = "none", *, flags: int = 0, data: str = ""
) -> None:
    where = os.fsencode(source), os.fsencode(target)
    _call("mount", *where, kind.encode(), ctypes.c_ulong(flags), data.encode())


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        shown = ", ".join(str(getattr(a, "value", a)) for a in arguments)
        raise OSError(number, f"{name}({shown}): {os.strerror(number)}")
