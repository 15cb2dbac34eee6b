"""The `clipfarm` command: every subcommand stands in the module that its group is named after."""


def main() -> None:
    """Entry point of the command `clipfarm`; `app.main` says what it does.

    Imports nothing before it is called: worker processes import the script that started them, and with it
    this module, but not what they have no use for.
    """
    from clipfarm_dagster.cli import app

    app.main()
