"""Which model plays a role. Imports no torch: a dry run needs it."""

from typing import TYPE_CHECKING

from solon.errors import UsageError
from solon.models import ModelSource, resolve
from solon.roles import Role, RoleName

if TYPE_CHECKING:
    from solon.engines.http_link import Link


def role_source(name: RoleName, role: Role, model: str, fetch: bool = True) -> ModelSource:
    """The role's own model, else `model`; one on a server is known by its name alone.

    Without a name the server is asked what it serves, unless nothing may be fetched: then it has none yet.

    Raises:
        UsageError: the server serves several models, or lists none. Else errors are those of `resolve`.
        RunError: no server answers.
    """
    if role.engine != "http":
        return resolve(role.model or model, fetch)
    served = role.model or (_served(name, role) if fetch else "")
    return ModelSource(served, "", f"http:{served}")


def greet(name: RoleName, role: Role) -> None:
    """Raises RunError if the role's model is on servers and none of them answers."""
    if role.engine == "http":
        _link(name, role).greet()


def _served(name: RoleName, role: Role) -> str:
    """The one model that the server lists."""
    link = _link(name, role)
    found = link.models()
    if len(found) != 1:
        listed = f"it has {', '.join(found[:8])}" if found else "it lists none"
        where, why = link.endpoints[0], f" ({link.unlisted})" if link.unlisted else ""
        raise UsageError(f"{name}.model: which model of {where} is meant? {listed}{why}. Set {name}.model.")
    return found[0]


def _link(name: RoleName, role: Role) -> "Link":
    from solon.engines.http_link import Link

    return Link(name, role.endpoints, role.api_key_env, role.http.timeout, connections=1)
