"""What every API view shares."""

from typing import Any, cast

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from rest_framework.request import Request
from rest_framework.views import APIView

from config.orm import hand_back
from config.principals import Principal


class ApiView(APIView):
    """A view that reads with `config.bodies.read` and answers with `config.bodies.answer`.

    Content negotiation, versioning and throttling are passed by: all bodies are JSON.
    """

    renderer_classes = ()
    parser_classes = ()
    http_method_names = ["get", "post", "put", "patch", "delete", "head"]

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        """A request that is gone with its last use.

        Parsers, of which there are none, would be told of the request by the request: a circle, and
        for the ten thousand that are held the garbage collector stops everything for a second.
        """
        initialized = super().initialize_request(request, *args, **kwargs)
        initialized.parser_context.clear()
        return initialized

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Authenticate."""
        self.perform_authentication(request)

    def finalize_response(  # type: ignore[override]  # DRF takes any response, too
        self, request: Request, response: HttpResponseBase, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        """Name the allowed methods where the one tried is not, and the length of the body.

        The request is done with the database: a reader that takes its time holds no connection.
        """
        hand_back()
        if response.status_code == 405:
            response.headers["Allow"] = ", ".join(self.allowed_methods)
        if isinstance(response, HttpResponse):
            if response.status_code not in (204, 304):
                response.headers["Content-Length"] = str(len(response.content))
            if not response.content and request.method != "HEAD":
                del response.headers["Content-Type"]
        return response

    @property
    def caller(self) -> Principal:
        """The authenticated principal."""
        return cast(Principal, self.request.user)
