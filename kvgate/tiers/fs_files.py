"""Files under names that several gateways give and take, on file systems that promise little. Everything here blocks.

What is used: `link` and exclusive creation fail where the name is taken, and `rename` replaces in one step. Where there
are no hard links, a name is claimed with an empty file, which the real one then replaces: an empty file is a miss. One
whose claimer died is taken away by the next writer.

A file is taken away from a name only after it was looked at: it is moved aside, and put back if it is another one. In
that moment a reader may miss it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from array import array
from collections.abc import Callable
from pathlib import Path

from kvgate.errors import CorruptCopy, NotAdmitted, NotInTier, TierError
from kvgate.tiers.base import Name, Record
from kvgate.tiers.disk_file import read_footer
from kvgate.tiers.disk_streams import unlink

GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
"""What the system says of a file that another gateway has removed; ESTALE where this one knew it on NFS."""

_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_TRIES = 100
_CLAIM_S = 2.0
"""How long a name that was claimed may be without its file: the claimer needs one more step."""

_CLAIM_POLL_S = 0.01


def name_of(record: Record) -> Name:
    """What an object is called."""
    return Name(record.tenant, record.bucket, record.key)


def open_object(path: Path, name: Name) -> tuple[int, Record, array[int]]:
    """A descriptor of the file at `path`, the record of `name` that it holds, and the digests of its blocks.

    Raises NotInTier when there is none, CorruptCopy when it is something else, OSError.
    """
    try:
        return _open_object(path, name)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
    return _open_object(path, name)  # the name was known from before; now the server is asked again


def _open_object(path: Path, name: Name) -> tuple[int, Record, array[int]]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotInTier("the file is gone") from error
    try:
        if not os.fstat(fd).st_size:
            raise NotInTier("the name is claimed, and the file not there yet")
        record, blocks = read_footer(fd)
        if name_of(record) != name:
            raise CorruptCopy("the file holds another object")
    except BaseException:
        os.close(fd)
        raise
    return fd, record, blocks


def publish(temporary: Path, path: Path, record: Record, aside: Callable[[], Path]) -> bool:
    """Give a complete file its name; False when a copy with the same body has it. `temporary` is gone then.

    aside: gives a new path on the same file system each time
    Raises NotAdmitted when the name has another body, TierError, OSError.
    """
    claimed_since: float | None = None
    for _ in range(_TRIES):
        try:
            _give_name(temporary, path)
            return True
        except FileNotFoundError:
            if not temporary.exists():
                raise TierError("the unfinished file was removed", transient=True) from None
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            continue
        except FileExistsError:
            pass
        try:
            there = path.stat()
        except OSError as error:
            if error.errno in GONE:
                continue
            raise
        if os.path.samestat(there, temporary.stat()):  # the name was given, and the answer that said so was lost
            unlink(temporary)
            return True
        if not there.st_size:
            claimed_since = claimed_since or time.monotonic()
            while time.monotonic() < claimed_since + _CLAIM_S and _is_empty(path):
                time.sleep(_CLAIM_POLL_S)
            if _is_empty(path):
                take_away(path, there, aside())
            continue
        try:
            fd, found, _ = open_object(path, name_of(record))
        except NotInTier:
            continue
        except CorruptCopy:
            take_away(path, there, aside())
            continue
        os.close(fd)
        if not found.same_body(record):
            raise NotAdmitted("the key has another body there")
        unlink(temporary)
        return False
    raise TierError("the name of the object changes hands too often", transient=True)


def take_away(path: Path, seen: os.stat_result, aside: Path) -> bool:
    """Remove the file that was seen at `path`; False when it is not there any more. Never removes another one."""
    try:
        os.rename(path, aside)
    except OSError as error:
        if error.errno in GONE:
            return False
        raise
    moved = os.stat(aside)
    same = (moved.st_dev, moved.st_ino, moved.st_size, moved.st_mtime_ns)
    if same == (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns):
        unlink(aside)
        return True
    with contextlib.suppress(FileExistsError, FileNotFoundError):  # then there is a newer one, or not even a folder
        _give_name(aside, path)
    unlink(aside)
    return False


def _give_name(temporary: Path, path: Path) -> None:
    """Move a file to a name that nothing has. Raises FileExistsError, FileNotFoundError."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
    else:
        unlink(temporary)
        return
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    os.rename(temporary, path)


def _is_empty(path: Path) -> bool:
    try:
        return not path.stat().st_size
    except OSError as error:
        if error.errno in GONE:
            return False
        raise


def sync_folders(path: Path, upto: Path) -> None:
    """Make the name of a file, and those of the folders that lead to it from `upto`, survive a loss of power."""
    for folder in path.parents:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if folder == upto:
            return
