"""Prefect flows of the commands. The only package that imports Prefect."""

import os

from pydantic_settings.sources import ConfigFileSourceMixin, DotEnvSettingsSource

from flows.core.machine.server_health import exempt_loopback

exempt_loopback()
# The files .env, prefect.toml and pyproject.toml of the current folder, which may be a stranger's,
# must set nothing: an address in them would be sent the login. Prefect reads them again for every
# Settings() and has no switch. The environment and the user's profile still count.
ConfigFileSourceMixin._read_files = lambda *_, **__: {}  # type: ignore[method-assign]
DotEnvSettingsSource._read_env_files = lambda _: {}  # type: ignore[method-assign, assignment]
if os.path.expanduser("~").startswith("~"):
    os.environ["HOME"] = os.devnull  # Prefect cannot be imported without a home
_home = os.path.expanduser(os.environ.get("PREFECT_HOME") or "~/.prefect")
os.environ.setdefault("PREFECT_PROFILES_PATH", os.path.join(_home, "profiles.toml"))
# Prefect reads these once, at its first import.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
# scripts/run/prepare_pool.py relies on this; Prefect's own 180 s is too long to wait four times.
os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
# For a command; in a deployment, Prefect was imported earlier. Each retry waits twice as long as
# the last. flows/interfaces/prefect/crashed.py decides how long the run waits.
os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "2")
