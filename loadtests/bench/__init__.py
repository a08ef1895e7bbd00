"""How fast headrace is beside the least that a server can do: both measured in turn, on the same machine."""
