"""Some files of an archive, unpacked under names of our own choice and within bounds."""

import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tradeoff.core.errors import DataError
from tradeoff.data.downloads import under_lock


def unzip(archive: Path, members: Sequence[str], folder: Path, max_bytes: int) -> Path:
    """Unpack ``members`` of a zip file into ``folder``, each at its own relative path; others stay.

    A member is found by the end of its path, since archives differ in the folder that they start with.

    Raises:
        DataError: the archive is damaged, lacks a member, or they unpack to more than ``max_bytes``.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            infos = {}
            for member in members:
                wanted = PurePosixPath(member).parts
                found = [
                    i for i in file.infolist() if PurePosixPath(i.filename).parts[-len(wanted) :] == wanted
                ]
                if not found:
                    raise DataError(f"{archive} holds no {member}")
                infos[member] = min(found, key=lambda info: len(info.filename))
            if sum(info.file_size for info in infos.values()) > max_bytes:
                raise DataError(f"{archive} unpacks to more than {max_bytes:,} bytes")
            for member, info in infos.items():
                with (
                    under_lock(folder / member) as temporary,
                    file.open(info) as source,
                    temporary.open("wb") as target,
                ):
                    shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"cannot unpack {archive}: {error}") from error
    return folder


def untar(archive: Path, member: str, target: Path, max_bytes: int) -> Path:
    """Unpack one file of a compressed tar archive to ``target``, unless it is there already.

    Raises:
        DataError: the archive is damaged, lacks the file, or it is larger than ``max_bytes``.
    """
    try:
        with under_lock(target) as temporary, tarfile.open(archive, "r:*") as file:
            if target.exists():
                return target
            for info in file:
                if info.isfile() and PurePosixPath(info.name).parts[-2:] == PurePosixPath(member).parts[-2:]:
                    if info.size > max_bytes:
                        raise DataError(f"{archive}: {member} has more than {max_bytes:,} bytes")
                    source = file.extractfile(info)
                    assert source is not None
                    with temporary.open("wb") as unpacked:
                        shutil.copyfileobj(source, unpacked, 1 << 20)
                    break
            else:
                raise DataError(f"{archive} holds no {member}")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"cannot unpack {archive}: {error}") from error
    return target
