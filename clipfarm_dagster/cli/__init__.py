"""The `clipfarm` command: every subcommand stands in the module that its group is named after."""

from clipfarm_dagster.cli.app import main

__all__ = ["main"]
