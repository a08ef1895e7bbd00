"""The schema of headrace 0.3."""

from django.db import migrations

from headrace.django.operations import UpgradeSchema


class Migration(migrations.Migration):  # type: ignore[misc]
    """Makes the schema, or brings up one that `headrace migrate` has made."""

    operations = (UpgradeSchema(28),)
