"""The SQL schema: what it is made by, what belongs to it, who owns it, and whose deployment it is."""
