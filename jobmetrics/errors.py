"""The exceptions of jobmetrics. The docstring of each is its default message."""

from __future__ import annotations


class JobmetricsError(Exception):
    """jobmetrics could not do what was asked."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class SettingsError(JobmetricsError):
    """A setting is unknown or has a value that is not allowed."""


class InstrumentError(JobmetricsError, ValueError):
    """A metric was defined or used in a way that Prometheus does not allow."""


class RegistryError(JobmetricsError):
    """The registry directory cannot be used."""


class DirectoryRefused(RegistryError):
    """The registry directory is not safe to use."""


class DirectoryMissing(RegistryError):
    """The registry directory does not exist."""


class FormatRefused(RegistryError):
    """The registry directory has another format version."""


class Damaged(RegistryError):
    """A file of the registry directory is damaged."""


class CollectorError(JobmetricsError):
    """A queue collector could not read its broker."""
