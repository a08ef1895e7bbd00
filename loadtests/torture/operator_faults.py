"""Operations of operators while clients are connected. They must end no connection and lose no event."""

from loadtests.torture.fault import Fault


class Drain(Fault):
    """An operator drains a shard and takes it back later."""

    lane = "operator"
    lasts_s = (0.0, 6.0)

    def inject(self, lasts_s: float) -> str:
        """Drain one."""
        self._shard = self.chance.choice(sorted(self.system.shards()) or ["t-0"])
        return self.system.headrace("drain", self._shard)

    def heal(self) -> None:
        """Take it back."""
        self.system.headrace("undrain", self._shard)


class Move(Fault):
    """An operator moves a slot with its connections."""

    lane = "operator"

    def inject(self, lasts_s: float) -> str:
        """Move one that has subscribers."""
        shard = self.chance.choice(sorted(self.system.shards()) or ["t-0"])
        return self.system.headrace("move", self.chance.choice(self.system.plan.shared[:8]), shard)


class Rebalance(Fault):
    """An operator gives all slots to the shards that they belong to."""

    lane = "operator"

    def inject(self, lasts_s: float) -> str:
        """Rebalance."""
        return self.system.headrace("rebalance")


class Restart(Fault):
    """An operator has a shard replaced by a successor, which takes over its connections."""

    lane = "operator"

    def inject(self, lasts_s: float) -> str:
        """Restart one; returns when it has been replaced, or cannot be."""
        return self.system.headrace("restart", self.chance.choice(sorted(self.system.shards()) or ["t-0"]))


class Scale(Fault):
    """An operator adds a shard or takes one away, and later changes it back."""

    lane = "operator"
    lasts_s = (0.0, 6.0)

    def inject(self, lasts_s: float) -> str:
        """Scale to one shard more or less than planned."""
        planned = self.system.plan.shards
        return self.system.headrace("scale", str(max(1, planned + self.chance.choice((-1, 1)))))

    def heal(self) -> None:
        """Scale back; and undrain, since a command that failed half-way leaves a shard drained."""
        planned = self.system.plan.shards
        self.system.headrace("scale", str(planned))
        self.system.headrace("undrain", f"t-{planned - 1}")
