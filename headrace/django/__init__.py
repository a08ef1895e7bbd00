"""headrace for Django: `publish` in the current atomic block, and pages whose streams continue where the page ends.

    from headrace.django import publish, snapshot

    @snapshot                                              {% load headrace %}
    def board(request):                                    {% headrace_script %}
        return render(request, "board.html",               {% headrace_stream "notes" user=request.user.pk %}
                      {"notes": Note.objects.all()})

    with transaction.atomic():
        note.save()
        publish("notes", note.text)

The tags, the migrations of the schema and the checks need `"headrace.django"` in INSTALLED_APPS. `settings.HEADRACE`
may have the settings. `headrace.django.operations` has the operations for migrations of the application.
"""

from headrace import signing
from headrace.django import configuration
from headrace.django.pages import snapshot
from headrace.django.publishing import publish, publish_many

__all__ = ["publish", "publish_many", "snapshot"]

signing.add_source(configuration.variables)
