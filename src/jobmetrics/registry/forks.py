"""What the writers of a process do around a fork: the hooks are here, once, and ask each writer that lives."""

from __future__ import annotations

import os
import threading
import weakref
from threading import get_ident
from typing import Protocol

from jobmetrics.registry import descriptors


class Follower(Protocol):
    """Something that is to know of forks."""

    def before_fork(self) -> None:
        """In the parent, in the thread that forks."""

    def after_fork_in_parent(self) -> None:
        """In the same thread, also when there was no fork after all."""

    def after_fork_in_child(self) -> int | None:
        """In the child; returns the descriptor of a lease that its parent took for it, the only one that it keeps."""


# Weak references in a plain list: walking a WeakSet writes to several objects, each a copied page in the child.
_followers: list[weakref.ref[Follower]] = []


count = 0  # forks between this process and the one that imported this
main_thread = threading.main_thread().ident


def follow(follower: Follower) -> None:
    """Tell it of forks for as long as it lives."""
    _followers[:] = [known for known in _followers if known() is not None]
    _followers.append(weakref.ref(follower))


def _before_fork() -> None:
    for known in _followers:
        follower = known()
        if follower is not None:
            follower.before_fork()


def _after_fork_in_parent() -> None:
    for known in _followers:
        follower = known()
        if follower is not None:
            follower.after_fork_in_parent()


def _after_fork_in_child() -> None:
    global count, main_thread
    count += 1
    main_thread = get_ident()  # the only thread that a child begins with
    kept: list[int] = []
    for known in _followers:
        follower = known()
        lease = None if follower is None else follower.after_fork_in_child()
        if lease is not None:
            kept.append(lease)
    descriptors.close_inherited(kept)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
