"""A box for programs that a model or a stranger wrote.

Inside it there is no network, nothing of the file system but the system's own programs and libraries
(read-only) and one work folder, no other process, and no privilege. Built by bubblewrap, else by ``unshare``.
Root makes the box without a user namespace and the program runs as nobody, since no process limit binds root.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from .errors import SandboxUnavailable

WORK = "/box"
"""Where the work folder is inside the box; the home and the temporary folder, too."""
_NOBODY = 65534

_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/usr")
_LINKER = ("/etc/ld.so.cache", "/etc/alternatives")
_BUILD_ROOT = """
set -e
root=$1; work=$2; shift 2
mount --make-rprivate /
mount -t tmpfs -o size=1m,mode=755 none "$root"
mkdir "$root/tmp"
mount --bind "$work" "$root/tmp"
while [ "$1" != -- ]; do
  if [ -h "$1" ]; then ln -s "$(readlink "$1")" "$root$1"
  else
    if [ -d "$1" ]; then mkdir -p "$root$1"; else mkdir -p "$(dirname "$root$1")"; : > "$root$1"; fi
    mount --bind "$1" "$root$1"
    mount -o remount,bind,ro "$root$1"
  fi
  shift
done
shift
mkdir "$root/dev" "$root/proc" "$root/box" "$root/old"
for device in null zero full random urandom; do
  : > "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t proc proc "$root/proc"
mount --bind "$work" "$root/box"
cd "$root"
pivot_root . old
umount -l /old
rmdir /old
mount -o remount,bind,ro /
cd /
exec "$@"
"""


def boxed(command: Sequence[str], work: Path, readable: Sequence[Path] = ()) -> list[str]:
    """The command that runs ``command`` in a box.

    Args:
        command: program and arguments, with paths as they are inside the box.
        work: the folder that the box may write, seen there as :data:`WORK`.
        readable: further files and folders that it may read, seen under their own paths.

    Raises:
        SandboxUnavailable: no kind of box works on this machine.
    """
    kind = sandbox_kind()
    if kind is None:
        raise SandboxUnavailable(
            "no sandbox works here, and this program must not run without one; install bubblewrap "
            "(apt-get install bubblewrap), and allow user namespaces if the system forbids them"
        )
    _give_to_nobody(work)
    return _BUILDERS[kind](command, work, readable)


@lru_cache
def sandbox_kind() -> str | None:
    """``bubblewrap`` or ``unshare``, whichever works here first; None where neither does."""
    return next((kind for kind in _BUILDERS if _works(kind)), None)


def _works(kind: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="tradeoff-") as folder:
        _give_to_nobody(Path(folder))
        command = _BUILDERS[kind](["sh", "-c", "test -w /box && ! test -w /usr"], Path(folder), ())
        try:
            done = subprocess.run(command, cwd="/", capture_output=True, timeout=20, check=False)
        except (OSError, subprocess.SubprocessError):
            return False
        return done.returncode == 0


def _is_root() -> bool:
    return os.geteuid() == 0


def _give_to_nobody(work: Path) -> None:
    if _is_root():
        for path in (work, *work.rglob("*")):
            os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)


def _bubblewrap(command: Sequence[str], work: Path, readable: Sequence[Path]) -> list[str]:
    box = [
        "bwrap",
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-uts",
        "--unshare-cgroup-try",
    ]
    box += ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    if _is_root():
        box += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"]
    else:
        box += ["--unshare-user"]
    # Before the readable paths, since those may lie below /tmp.
    box += ["--bind", str(work), "/tmp"]
    visible = _visible(readable)
    for folder in dict.fromkeys(parent for path in visible for parent in reversed(Path(path).parents[:-1])):
        box += ["--perms", "0755", "--dir", str(folder)]
    for path in visible:
        box += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
    box += ["--proc", "/proc", "--dev", "/dev", "--bind", str(work), WORK]
    # The box's root and /dev live in memory: left writable, a program could fill it.
    box += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]
    return [*box, "--", *_unprivileged(readable), *command]


def _unshare(command: Sequence[str], work: Path, readable: Sequence[Path]) -> list[str]:
    box = ["unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL"]
    if not _is_root():
        box += ["--user", "--map-root-user"]
    box += ["sh", "-c", _BUILD_ROOT, "sh", "/mnt", str(work), *_visible(readable), "--"]
    return [*box, *_unprivileged(readable), *command]


_BUILDERS = {"bubblewrap": _bubblewrap, "unshare": _unshare}


def _visible(readable: Sequence[Path]) -> list[str]:
    return [path for path in (*_SYSTEM, *_LINKER, *map(str, readable)) if os.path.lexists(path)]


def _unprivileged(readable: Sequence[Path]) -> list[str]:
    """The start of a command that gives up every privilege and the environment."""
    drop = ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    if _is_root():
        drop += [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
    search = ":".join(["/usr/local/bin", "/usr/bin", "/bin", *(str(path / "bin") for path in readable)])
    return [*drop, "env", "-i", f"--chdir={WORK}", f"PATH={search}", f"HOME={WORK}", "LANG=C.UTF-8"]


def installation(executable: Path) -> list[Path]:
    """What a program needs besides the system: its virtual environment, or the folder that it is in."""
    found = []
    for path in (executable, executable.resolve()):
        prefix = path.parent.parent
        if (prefix / "pyvenv.cfg").is_file():
            found += [prefix, Path(sys.base_prefix)]
        elif path.parent.name == "bin" and (prefix / "lib").is_dir() and prefix != Path.home():
            found.append(prefix)
        else:
            found.append(path.parent)
    return [path for path in dict.fromkeys(found) if not path.is_relative_to("/usr")]
