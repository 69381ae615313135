"""The ASGI application of a server: its routes, and the responses for unknown ones."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from flows.serving.caption_routes import CaptionRoutes
from flows.serving.chat import ChatRoutes
from flows.serving.described import CHAT_BODY, MEDIUM_BODY, DescribedApp
from flows.serving.guard import LIMITED, extra_headers
from flows.serving.json_answers import json_answer
from flows.serving.page import page_of
from flows.serving.refusals import OPENAI, HttpRefusal, bad_request
from flows.serving.routes import Routes
from flows.serving.service import Service

PARAMETER_ERRORS = {"missing": "it is missing", "string_pattern_mismatch": "the text is empty"}
"""Kind of pydantic's error → message, where its own would not help."""
IN_SCHEMA = "The parameters are in /openapi.json"


def app_of(service: Service, token: str) -> FastAPI:
    """Return the ASGI application of a service."""
    app = DescribedApp(
        title="Penstock",
        version=version("penstock"),
        docs_url=None,
        redoc_url=None,
        description="Labels, vectors, search and captions of images and clips.",
        dependencies=[Depends(_refuse_unknown_parameters)],
    )
    routes = Routes(service, token)
    add = app.add_api_route
    add("/v1/label", routes.label, methods=["POST"], openapi_extra=MEDIUM_BODY)
    add("/v1/embed", routes.embed, methods=["POST"], openapi_extra=MEDIUM_BODY)
    captions = CaptionRoutes(service)
    chat = ChatRoutes(service, captions)
    add("/v1/caption", captions.caption, methods=["POST"], openapi_extra=MEDIUM_BODY)
    add("/v1/chat/completions", chat.complete, methods=["POST"], openapi_extra=CHAT_BODY)
    add("/v1/models", chat.models, methods=["GET"])
    add("/v1/models/{name:path}", chat.model, methods=["GET"])
    add("/v1/search", routes.search, methods=["GET"])
    add("/v1/search", routes.search_picture, methods=["POST"], openapi_extra=MEDIUM_BODY)
    add("/v1/media/{hit}", routes.media, methods=["GET"])
    add("/v1/media/{hit}", routes.media, methods=["HEAD"], name="media_head")
    add("/v1/thumbnail/{hit}", routes.thumbnail, methods=["GET"])
    add("/v1/info", routes.info, methods=["GET"])
    add("/v1/stats", routes.stats, methods=["GET"])
    add("/v1/session", routes.session, methods=["POST"])
    add("/metrics", routes.metrics, methods=["GET"])
    add("/healthz", routes.health, methods=["GET"])
    add("/readyz", routes.ready, methods=["GET"])
    _add_page(app)
    _answer_head(app)
    app.add_exception_handler(HttpRefusal, _refused)
    app.add_exception_handler(HTTPException, _unknown)
    app.add_exception_handler(RequestValidationError, _invalid_parameter)
    app.add_exception_handler(Exception, _internal_error)
    return app


def _answer_head(app: FastAPI) -> None:
    """Let every GET route answer HEAD as well. The web server leaves out the body."""
    for route in [each for each in app.routes if isinstance(each, APIRoute)]:
        if "GET" in (route.methods or ()):
            app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)


async def _refuse_unknown_parameters(request: Request) -> None:
    """Raise HttpRefusal for a parameter of the address that is not among those that /openapi.json
    lists, is no UTF-8, or is there twice. OpenAI's clients add their own to its paths."""
    path, given = request.url.path, request.query_params
    if not path.startswith(LIMITED) or path.startswith(OPENAI):
        return
    method = "get" if request.method == "HEAD" else request.method.lower()
    try:
        unquote_to_bytes(request.scope["query_string"]).decode()
    except UnicodeDecodeError as error:
        why = "the parameters of the address are not UTF-8"
        raise HttpRefusal(400, why, "Percent-encode their UTF-8 bytes") from error
    operation = request.app.openapi()["paths"][request.scope["route"].path][method]
    described = [each for each in operation.get("parameters", ()) if each["in"] == "query"]
    known = {each["name"]: each["schema"].get("type") == "array" for each in described}
    for name in given:
        if name not in known:
            raise bad_request(f"unknown parameter {name[:80]!r}", IN_SCHEMA)
        if not known[name] and len(given.getlist(name)) > 1:
            raise bad_request(f"{name} is given more than once", "Give it once")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpRefusal)
    answer = json_answer(error.to_json(request.url.path), error.status)
    for name, value in extra_headers(error):
        answer.headers[name.decode()] = value.decode()
    return answer


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    hint = "The routes are in /openapi.json" if error.status_code in (404, 405) else ""
    why = HttpRefusal(error.status_code, str(error.detail).lower(), hint, code="unknown_url")
    path = request.url.path
    # OpenAI clients also request routes that do not exist here.
    form = OPENAI[0] if error.status_code == 404 and path.startswith("/v1/") else path
    answer = json_answer(why.to_json(form), why.status)
    if error.status_code == 405:
        answer.headers["allow"] = ", ".join(_methods_at(request))
    return answer


def _methods_at(request: Request) -> list[str]:
    """Return the methods accepted by the routes that match the request's path."""
    routes = [each for each in request.app.routes if isinstance(each, Route)]
    found = (each for each in routes if each.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in found for method in route.methods or ()})


async def _invalid_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: Mapping[str, Any] = error.errors()[0]
    name = next(iter(first["loc"][1:]), "")  # after where it was
    why = PARAMETER_ERRORS.get(first["type"], first["msg"])
    error = bad_request(f"invalid {name}: {why}", IN_SCHEMA)
    return await _refused(request, error)


async def _internal_error(request: Request, error: Exception) -> Response:
    message = f"internal server error: {type(error).__name__}"
    return await _refused(request, HttpRefusal(500, message, "See the server's log"))


def _add_page(app: FastAPI) -> None:
    page = page_of()
    policy = {"content-security-policy": page.policy, "cache-control": "no-cache"}

    async def shown() -> Response:
        return Response(page.html, media_type="text/html; charset=utf-8", headers=policy)

    app.add_api_route("/", shown, methods=["GET"], include_in_schema=False)
