"""JSON from a bare Django view: no database, no middleware."""

import secrets

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"], DEBUG=False, MIDDLEWARE=[], ROOT_URLCONF=__name__, SECRET_KEY=secrets.token_urlsafe()
)


def hello(_request: HttpRequest) -> JsonResponse:
    """Greet."""
    return JsonResponse({"message": "hello, world"})


urlpatterns = [path("hello", hello)]
app = get_wsgi_application()
