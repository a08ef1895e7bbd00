"""Notes that every window shows as soon as they are committed, with Django.

Run it: python -m examples django
"""

import os
from pathlib import Path

import django
from django.conf import settings
from django.core.management import execute_from_command_line
from django.db import connection, models, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import path
from psycopg.conninfo import conninfo_to_dict

database = conninfo_to_dict(os.environ["HEADRACE_DATABASE_URL"])

settings.configure(
    DEBUG=True,
    SECRET_KEY=os.environ["HEADRACE_SECRET"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"],
    INSTALLED_APPS=["headrace.django"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": database["dbname"],
            "USER": database["user"],
            "PASSWORD": database["password"],
            "HOST": database["host"],
            "PORT": database["port"],
        }
    },
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "DIRS": [Path(__file__).parent],
            "APP_DIRS": True,
        }
    ],
)
django.setup()

# Django is set up by now.
from headrace.django import publish, snapshot


class Note(models.Model):
    """A line of text."""

    text = models.TextField()

    class Meta:  # noqa: D106
        app_label = "notes"
        db_table = "django_note"


def board(request: HttpRequest) -> HttpResponse:
    """Show the notes; take a new one."""
    return add(request) if request.method == "POST" else show(request)


@snapshot
def show(request: HttpRequest) -> HttpResponse:
    """The page; its stream goes on where it ends."""
    return render(request, "board.html", {"notes": Note.objects.order_by("pk")})


def add(request: HttpRequest) -> HttpResponse:
    """Save a note and publish it in one transaction."""
    with transaction.atomic():
        note = Note.objects.create(text=request.POST["text"])
        publish("django:notes", note.text)
        transaction.set_rollback(request.POST["end"] == "rollback")
    return HttpResponseRedirect("/")


urlpatterns = [path("", board)]

if __name__ == "__main__":
    if Note._meta.db_table not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.create_model(Note)
    execute_from_command_line(["app.py", "runserver", "--noreload", "127.0.0.1:" + os.environ.get("PORT", "5000")])
