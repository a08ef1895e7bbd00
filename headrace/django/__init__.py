"""headrace for Django: `publish` in the current atomic block, and pages whose streams continue where the page ends.

    from headrace.django import publish, snapshot

    @snapshot                                              {% load headrace %}
    def board(request):                                    {% headrace_script %}
        return render(request, "board.html",               {% headrace_stream "notes" user=request.user.pk %}
                      {"notes": Note.objects.all()})

    with transaction.atomic():
        note.save()
        publish("notes", note.text)

The tags need `"headrace.django"` in INSTALLED_APPS.
"""

from headrace.django.pages import snapshot
from headrace.django.publishing import publish, publish_many

__all__ = ["publish", "publish_many", "snapshot"]
