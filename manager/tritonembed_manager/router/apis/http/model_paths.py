"""The model that a path names, for clients whose protocol has no other place for it.

TEI's routes and litellm's stand behind `/models/NAME`, OpenAI's behind `/openai/deployments/NAME`, as Azure has them.
"""

import re
from collections.abc import Iterable
from dataclasses import replace

from aiohttp import web

from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.apis.http.vector_requests import NO_SUCH_MODEL
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.data.tenants import check_model

MODELS, DEPLOYMENTS = "/models", "/openai/deployments"


def model_pattern(names: ServedNames) -> str:
    """A model's part of a route. Hub names and folder paths have slashes, which clients may leave unencoded."""
    every = [name for each in names.models for name in (*each.ids, *each.others)]
    slashed = [re.escape(name) for name in every if "/" in name and not {"{", "}"} & set(name)]
    return f"{{model:(?:{'|'.join(('[^{}/]+', *slashed))})}}" if slashed else "{model}"


def behind_models(routes: Iterable[web.RouteDef], names: ServedNames) -> list[web.RouteDef]:
    """The routes once more, for the model of the path."""
    prefix = f"{MODELS}/{model_pattern(names)}"
    return [web.route(route.method, prefix + route.path.rstrip("/"), route.handler) for route in routes]


def of_path(request: web.Request, names: ServedNames) -> ServedNames:
    """The names of the model in a request's path, alone; all names if the path has no model.

    Raises BadRequest (404) for a model that is not served, DispatchError (PERMISSION_DENIED) for one that the current
    tenant may not use.
    """
    asked = request.match_info.get("model")
    if asked is None:
        return names
    found = names.find(asked)
    if found is None:
        raise BadRequest(NO_SUCH_MODEL, "model", 404, "model_not_found")
    check_model(found.served.name)
    return replace(found, more=()) if found.more else found
