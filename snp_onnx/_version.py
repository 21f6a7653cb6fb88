"""The one place where the version is written: the build and the provenance of pruned models read it from here."""

__version__ = "0.1.0"
