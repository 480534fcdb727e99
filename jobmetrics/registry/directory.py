"""The registry directory: its path, its owner and group, how its files are opened, and pruning."""

from __future__ import annotations

import contextlib
import os
import stat
import time

from jobmetrics.errors import Damaged, DirectoryMissing, DirectoryRefused, RegistryError
from jobmetrics.registry import files
from jobmetrics.registry.files import close, lock_directory_within, lock_within, try_lock

INDEX_NAME = "index"
SET_ASIDE_SUFFIX = ".set-aside"
SLOT_PREFIX = "slot-"
_SLOT_DIGITS = 5
_SHARED = 0o2770  # the mode of a directory that a group shares
_MAKING = 0.1  # seconds for the maker of a directory to give it to the group

# Do not follow links, wait for a FIFO or pass the descriptor to another program. Windows has none of these flags.
SAFE_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY"))


def slot_name(number: int) -> str:
    """Return the name of a slot file."""
    return f"{SLOT_PREFIX}{number:0{_SLOT_DIGITS}d}"


def slot_number(name: str) -> int | None:
    """Return the number in a slot file's name; None for any other name."""
    digits = name[len(SLOT_PREFIX) :]
    if not name.startswith(SLOT_PREFIX) or not (digits.isascii() and digits.isdigit()):
        return None
    return int(digits) if slot_name(int(digits)) == name else None


class Directory:
    """A registry directory.

    group: id of the group that shares the directory, None for a private one. owner: id of a further
    user. This process may read that user's directory, in addition to its own user's and root's, but not record there.
    """

    __slots__ = ("group", "owner", "path")

    def __init__(self, path: str, group: int | None = None, owner: int | None = None) -> None:
        self.path = path
        self.group = group
        self.owner = owner

    @property
    def file_mode(self) -> int:
        return 0o600 if self.group is None else 0o660

    def prepare(self) -> None:
        """Make the directory if it is missing, and check that recording into it is safe.

        Raises:
            DirectoryRefused: for a link, another user's directory, or a directory that is writable by everyone.
            OSError: when it cannot be made.
        """
        try:
            self._make()
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            self._make()
        info = self._settled()
        mine = info.st_uid == os.geteuid()
        if self.group is None:
            if not mine:
                raise DirectoryRefused(
                    f"{self.path} belongs to user {info.st_uid}, this process is user {os.geteuid()}; "
                    "set dir_group to share it within a group"
                )
            return
        if mine and (info.st_gid != self.group or stat.S_IMODE(info.st_mode) != _SHARED):
            os.chown(self.path, -1, self.group)
            os.chmod(self.path, _SHARED)
        elif not mine and info.st_gid != self.group:
            raise DirectoryRefused(f"{self.path} belongs to group {info.st_gid}, dir_group is {self.group}")

    def _settled(self) -> os.stat_result:
        """Like `_look`, after the member of the group that makes the directory has given it to the group."""
        info = self._look()
        deadline = time.monotonic() + _MAKING
        while self.group is not None and info.st_uid != os.geteuid() and time.monotonic() < deadline:
            if info.st_gid == self.group and stat.S_IMODE(info.st_mode) == _SHARED:
                break
            time.sleep(_MAKING / 20)
            info = self._look()
        return info

    def _make(self) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path, 0o700)
            os.chmod(self.path, 0o700)  # regardless of the umask

    def check(self) -> os.stat_result:
        """Check that the directory is safe to read: its owner decides what a reader shows.

        Raises:
            DirectoryMissing: when it does not exist.
            DirectoryRefused: for a link, anything that is not a directory, a directory that is writable by everyone,
                or another user's that neither `group` nor `owner` allows.
            OSError: when its status cannot be read.
        """
        info = self._look()
        if info.st_uid not in (os.geteuid(), 0, self.owner) and info.st_gid != self.group:
            raise DirectoryRefused(
                f"{self.path} belongs to user {info.st_uid}, this process is user {os.geteuid()}; if you trust that "
                f"user, set dir_owner to {info.st_uid}, or dir_group to a group that shares the directory"
            )
        return info

    def _look(self) -> os.stat_result:
        """Like `check`, for any owner."""
        try:
            info = os.lstat(self.path)
        except FileNotFoundError:
            raise DirectoryMissing(
                f"{self.path} does not exist yet; the first worker that records creates it"
            ) from None
        if stat.S_ISLNK(info.st_mode):
            raise DirectoryRefused(f"{self.path} is a symbolic link; name the directory itself")
        if not stat.S_ISDIR(info.st_mode):
            raise DirectoryRefused(f"{self.path} is not a directory")
        if info.st_mode & stat.S_IWOTH:
            raise DirectoryRefused(
                f"{self.path} may be written by anyone; "
                "name a directory inside it, or remove that permission (chmod o-w)"
            )
        return info

    def file(self, name: str) -> str:
        return os.path.join(self.path, name)

    def open(self, name: str, flags: int) -> int:
        """Open a file of the directory. Links are not followed, and a FIFO does not block.

        Raises:
            FileNotFoundError: when it does not exist.
            Damaged: when the name is not that of a regular file.
            OSError: when it cannot be opened.
        """
        try:
            fd = files.open_noted(self.file(name), flags | SAFE_FLAGS, self.file_mode)
        except OSError:
            if is_not_a_file(self.file(name)):
                raise Damaged(f"{name} is not a regular file") from None
            raise
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise Damaged(f"{name} is not a regular file")
            if flags & os.O_CREAT and info.st_size == 0:
                self._share(fd, info)
        except BaseException:
            files.close(fd)
            raise
        return fd

    def _share(self, fd: int, info: os.stat_result) -> None:
        """Give a new file the directory's mode and group, regardless of the umask."""
        if info.st_uid != os.geteuid():
            return
        if stat.S_IMODE(info.st_mode) != self.file_mode:
            os.fchmod(fd, self.file_mode)
        if self.group is not None and info.st_gid != self.group:
            os.fchown(fd, -1, self.group)

    def slots(self) -> list[int]:
        """Return the numbers of all slot files, ascending. Raises OSError."""
        return sorted(self.slot_inodes())

    def slot_inodes(self) -> dict[int, int]:
        """Return the inodes of all slot files by number. Raises OSError."""
        with os.scandir(self.path) as entries:
            found = ((slot_number(entry.name), entry.inode()) for entry in entries)
            return {number: inode for number, inode in found if number is not None}

    def set_aside_other(self, name: str, wait: float) -> None:
        """Rename an entry that is not a regular file. Raises OSError.

        Such an entry cannot be locked, so the directory is locked and the entry checked again: another process may have
        put a valid file in its place meanwhile.
        """
        with files.closing(files.open_noted(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            if lock_directory_within(fd, wait) and is_not_a_file(self.file(name)):
                self.set_aside(name)

    def set_aside(self, name: str) -> None:
        """Rename a damaged file. An earlier file that was set aside is replaced. Raises OSError."""
        aside = self.file(name + SET_ASIDE_SUFFIX)
        try:
            os.replace(self.file(name), aside)
        except FileNotFoundError:
            return  # another process was faster
        except OSError:
            if not os.path.isdir(self.file(name)) and not os.path.isdir(aside):
                raise
            os.rename(self.file(name), f"{aside}-{os.getpid()}")  # a directory and a file cannot replace each other


def is_not_a_file(path: str) -> bool:
    """Whether the name exists and is not a regular file; a link is not one.

    One system call decides, since other processes make and remove files meanwhile: a missing file is not damaged.
    """
    try:
        return not stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def same_file(fd: int, path: str) -> bool:
    """Whether the path names the file of an open descriptor."""
    try:
        named, opened = os.lstat(path), os.fstat(fd)
    except OSError:
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


LOCK_SECONDS = 5.0  # that `prune` waits for the index lock


class SlotsHeld(RegistryError):
    """Worker processes hold slots of the directory."""


def prune(directory: Directory) -> int:
    """Remove the index, all slots and all files that were set aside. The next process that records begins at 0.

    Returns:
        The number of removed files.

    Raises:
        SlotsHeld: when a living process holds a slot; nothing is removed then.
        RegistryError: when the directory is missing or not safe, or its index stays locked.
        OSError: when a file cannot be opened or removed.
    """
    directory.check()
    with contextlib.ExitStack() as held:
        index = _open(directory, INDEX_NAME, held)
        if index is not None and not lock_within(index, LOCK_SECONDS):
            raise RegistryError(f"another process keeps the index of {directory.path} locked; try again")
        slots = directory.slots()
        for number in slots:
            if not _is_free(directory, number):
                raise SlotsHeld(f"{slot_name(number)} is held by a living process; stop the workers first")
        removed = 0
        # The index first: a process that starts meanwhile makes a new one and does not use the old slots.
        if index is not None and same_file(index, directory.file(INDEX_NAME)):
            os.unlink(directory.file(INDEX_NAME))
            removed += 1
        removed += sum(_remove_free(directory, number) for number in slots)
        for name in os.listdir(directory.path):
            if SET_ASIDE_SUFFIX in name:
                os.unlink(directory.file(name))
                removed += 1
    return removed


def _open(directory: Directory, name: str, held: contextlib.ExitStack) -> int | None:
    try:
        fd = directory.open(name, os.O_RDWR)
    except FileNotFoundError:
        return None
    held.callback(close, fd)
    return fd


def _is_free(directory: Directory, number: int) -> bool:
    """Whether no process holds the slot. Opens one descriptor at a time, since the number of slots has no limit."""
    with contextlib.ExitStack() as held:
        fd = _open(directory, slot_name(number), held)
        return fd is None or try_lock(fd)


def _remove_free(directory: Directory, number: int) -> bool:
    """Remove a slot under its lock. A process that has leased it meanwhile keeps it and moves to the new index."""
    with contextlib.ExitStack() as held:
        fd = _open(directory, slot_name(number), held)
        if fd is None or not try_lock(fd) or not same_file(fd, directory.file(slot_name(number))):
            return False
        os.unlink(directory.file(slot_name(number)))
    return True
