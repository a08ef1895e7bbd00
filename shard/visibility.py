"""The visibility of events: whether a client may see events with a label, and whether it has missed any."""

from headrace.shard.connection import Subscription
from headrace.shard.messages import Page
from headrace.shard.ports import PredicateQuestions


class Visibility:
    """Decides by the audiences in a client's token and, for other labels, by the predicates.

    Owned by the dispatcher greenlet. The verdicts that predicates have given are kept with each connection.
    """

    def __init__(self, predicates: PredicateQuestions) -> None:
        self._predicates = predicates

    def visible(self, subscription: Subscription, label: str) -> bool | None:
        """Whether a client may see events with the label; None until a predicate has answered, with a Verdict."""
        connection = subscription.connection
        if label in connection.context.audiences:
            return True
        key = subscription.stream.name, label
        if connection.verdicts is not None and key in connection.verdicts:
            return connection.verdicts[key]
        answer = self._predicates.ask(connection, *key)
        # An answer that is known at once is not kept: labels that nobody registered may be as many as there are users.
        if answer is None:
            connection.verdicts = connection.verdicts or {}
            connection.verdicts[key] = None
        return answer

    def missed(self, subscription: Subscription, page: Page) -> bool | None:
        """Whether retention has removed an event above a client's position that the client would have been shown.

        Of each audience the newest removed event is known, so the answer is certain. None until a predicate has
        answered for one of the audiences.
        """
        audiences = page.missed_by(subscription.position)
        missed = "" in audiences or not audiences.isdisjoint(subscription.connection.context.audiences)
        for audience in sorted(audiences) if not missed else ():
            visible = self.visible(subscription, audience)
            if visible is None:
                return None
            missed = missed or visible
        return missed
