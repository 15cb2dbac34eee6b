"""The `clipfarm` command: every subcommand stands in the module that its group is named after."""


def main() -> None:
    """Entry point of the command `clipfarm`; `app.run` says what it does and how it exits.

    Imports nothing large before it is called: worker processes import the script that started them, and with
    it this module, but not what they have no use for.
    """
    import sys

    from clipfarm_dagster.orchestration.interrupts import EXIT_CODE, first_interrupt_noted

    with first_interrupt_noted() as noted:
        try:
            from clipfarm_dagster.cli import app

            code = app.run(noted)
        except KeyboardInterrupt:
            code = EXIT_CODE
        except Exception:
            if not noted():  # a library may turn the interrupt that reaches it into an error of its own
                raise
            code = EXIT_CODE
        if code == EXIT_CODE:
            print("clipfarm: interrupted; what was finished is recorded", file=sys.stderr)
        sys.exit(code)
