"""The SQL schema: its migrations, its parts, its owner, its advisory locks, and the identity of the deployment."""
