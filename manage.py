#!/usr/bin/env python
"""Django's command line for Pullwake."""

import os
import sys


def main() -> None:
    """Run the command named on the command line; what stops it from the start is one sentence."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    from django.conf import settings
    from django.core.management import execute_from_command_line

    from config.serving import startup

    try:
        # A command has one connection: a pool would hide for seconds why there is none.
        settings.DATABASES["default"].get("OPTIONS", {}).pop("pool", None)
        execute_from_command_line(sys.argv)
    except Exception as exc:
        reason = startup.explain(exc)
        if reason is None:
            raise
        sys.stderr.write(f"pullwake: {reason}\n")
        sys.exit(reason.status)


if __name__ == "__main__":
    main()
