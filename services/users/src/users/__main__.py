"""`python -m users serve|migrate|await-schema|events|rotate-key|replace-keys|end-sessions`."""

from shared import event_commands, migrations, server
from users import commands
from users.settings import UsersSettings


def _serve(settings: UsersSettings) -> None:
    server.run(settings, "users.app:create")


if __name__ == "__main__":
    server.main(
        UsersSettings,
        {
            "serve": ("answer requests until SIGTERM", _serve),
            "migrate": ("bring the database to the newest revision", migrations.upgrade),
            "await-schema": ("wait until the database has been migrated", migrations.await_schema),
            "events": event_commands.subcommands(),
            "rotate-key": ("publish a new signing key, which soon takes over", commands.rotate_key),
            "replace-keys": (
                "throw all signing keys away for a new one: every access token is void",
                commands.replace_keys,
            ),
            "end-sessions": ("log everybody out", commands.end_sessions),
        },
    )
