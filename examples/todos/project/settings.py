"""Settings of the project. The database is that of HEADRACE_DATABASE_URL."""

import os

from psycopg.conninfo import conninfo_to_dict

database = conninfo_to_dict(os.environ["HEADRACE_DATABASE_URL"])

DEBUG = False
SECRET_KEY = os.environ.get("SECRET_KEY", "only-for-this-example-and-its-tests")
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
INSTALLED_APPS = ["headrace.django", "rest_framework", "todos"]
ROOT_URLCONF = "project.urls"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": database["dbname"],
        "USER": database["user"],
        "PASSWORD": database.get("password"),
        "HOST": database.get("host"),
        "PORT": database.get("port"),
    }
}
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
REST_FRAMEWORK = {"DEFAULT_AUTHENTICATION_CLASSES": [], "UNAUTHENTICATED_USER": None}

HEADRACE = {"SECRET": SECRET_KEY, "PUBLIC_URL": "http://127.0.0.1:8000"}
