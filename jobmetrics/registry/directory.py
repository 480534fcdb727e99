"""The directory itself: its path, who may use it, and how its files are opened."""

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
_MAKING = 0.1  # seconds between a directory's making and its being the group's, at the most

# Never through a link, never waiting for a FIFO, never into another program. (Windows has none of them.)
SAFE_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY"))


def slot_name(number: int) -> str:
    """The name of a slot file."""
    return f"{SLOT_PREFIX}{number:0{_SLOT_DIGITS}d}"


def slot_number(name: str) -> int | None:
    """The number in a slot file's name, None for any other name."""
    digits = name[len(SLOT_PREFIX) :]
    if not name.startswith(SLOT_PREFIX) or not (digits.isascii() and digits.isdigit()):
        return None
    return int(digits) if slot_name(int(digits)) == name else None


class Directory:
    """A registry directory.

    group: the group that shares it, None when it is its owner's alone. owner: a user whose directory may be read
    beside one's own and root's; it allows no writing.
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
        """Make the directory if it is missing and check that recording into it is safe.

        Raises:
            DirectoryRefused: for a link, a foreign owner, or a directory that anyone may write to.
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
        """As `_look`. Another member who has made the directory just now gives it to the group a moment later."""
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
            os.chmod(self.path, 0o700)  # whatever the umask

    def check(self) -> os.stat_result:
        """Check that the directory is one that may be read: its owner decides what a reader shows.

        Raises:
            DirectoryMissing: when there is none.
            DirectoryRefused: for a link, something else than a directory, one that anyone may write to, or one of
                another user that neither `group` nor `owner` allows.
            OSError: when it cannot be looked at.
        """
        info = self._look()
        if info.st_uid not in (os.geteuid(), 0, self.owner) and info.st_gid != self.group:
            raise DirectoryRefused(
                f"{self.path} belongs to user {info.st_uid}, this process is user {os.geteuid()}; if you trust that "
                f"user, set dir_owner to {info.st_uid}, or dir_group to a group that shares the directory"
            )
        return info

    def _look(self) -> os.stat_result:
        """As `check`, but for any owner."""
        try:
            info = os.lstat(self.path)
        except FileNotFoundError:
            raise DirectoryMissing(f"{self.path} does not exist yet; the first worker that records makes it") from None
        if stat.S_ISLNK(info.st_mode):
            raise DirectoryRefused(f"{self.path} is a symbolic link; name the directory itself")
        if not stat.S_ISDIR(info.st_mode):
            raise DirectoryRefused(f"{self.path} is not a directory")
        if info.st_mode & stat.S_IWOTH:
            raise DirectoryRefused(f"{self.path} may be written by anyone; take that right away (chmod o-w)")
        return info

    def file(self, name: str) -> str:
        return os.path.join(self.path, name)

    def open(self, name: str, flags: int) -> int:
        """Open a file of the directory, never through a link, never waiting for a FIFO.

        Raises:
            FileNotFoundError: when there is none.
            Damaged: when the name stands for something else than a file.
            OSError: when it cannot be opened.
        """
        try:
            fd = files.open_noted(self.file(name), flags | SAFE_FLAGS, self.file_mode)
        except OSError:
            if is_no_file(self.file(name)):
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
        """Give a new file the directory's mode and group, whatever the umask."""
        if info.st_uid != os.geteuid():
            return
        if stat.S_IMODE(info.st_mode) != self.file_mode:
            os.fchmod(fd, self.file_mode)
        if self.group is not None and info.st_gid != self.group:
            os.fchown(fd, -1, self.group)

    def slots(self) -> list[int]:
        """The numbers of all slot files, ascending. Raises OSError."""
        return sorted(self.slot_inodes())

    def slot_inodes(self) -> dict[int, int]:
        """The inodes of all slot files by their numbers. Raises OSError."""
        with os.scandir(self.path) as entries:
            found = ((slot_number(entry.name), entry.inode()) for entry in entries)
            return {number: inode for number, inode in found if number is not None}

    def set_aside_other(self, name: str, wait: float) -> None:
        """Move what is no file out of the way. It cannot be locked; the directory itself is, and looked at again, so
        that nobody moves a good file away that another process has put there meanwhile. Raises OSError."""
        with files.closing(files.open_noted(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            if lock_directory_within(fd, wait) and is_no_file(self.file(name)):
                self.set_aside(name)

    def set_aside(self, name: str) -> None:
        """Move a damaged file out of the way; the one set aside before it is replaced. Raises OSError."""
        aside = self.file(name + SET_ASIDE_SUFFIX)
        try:
            os.replace(self.file(name), aside)
        except FileNotFoundError:
            return  # somebody else was faster
        except OSError:
            if not os.path.isdir(self.file(name)) and not os.path.isdir(aside):
                raise
            os.rename(self.file(name), f"{aside}-{os.getpid()}")  # a folder takes no file's place, nor a file its


def is_no_file(path: str) -> bool:
    """Whether something else than a regular file bears the name, a link too. In one look: others make files and
    remove them at any moment, and one that is gone is not damaged."""
    try:
        return not stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def same_file(fd: int, path: str) -> bool:
    """Whether an open descriptor is the file that the path names now."""
    try:
        named, opened = os.lstat(path), os.fstat(fd)
    except OSError:
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


LOCK_SECONDS = 5.0


class SlotsHeld(RegistryError):
    """Worker processes hold slots of the directory."""


def prune(directory: Directory) -> int:
    """Remove the index, all slots and what was set aside; the next process that records begins anew.

    Returns how many files were removed.

    Raises:
        SlotsHeld: when a living process holds a slot; nothing was removed then.
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
        # The index goes first: a process that starts meanwhile makes a new one and never reads a slot of the old.
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
    """Whether no process holds the slot. One descriptor at a time: a directory may have any number of slots."""
    with contextlib.ExitStack() as held:
        fd = _open(directory, slot_name(number), held)
        return fd is None or try_lock(fd)


def _remove_free(directory: Directory, number: int) -> bool:
    """Remove a slot under its lock. A process that has leased it since keeps it, and moves to the new index."""
    with contextlib.ExitStack() as held:
        fd = _open(directory, slot_name(number), held)
        if fd is None or not try_lock(fd) or not same_file(fd, directory.file(slot_name(number))):
            return False
        os.unlink(directory.file(slot_name(number)))
    return True
