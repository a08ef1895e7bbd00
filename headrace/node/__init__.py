"""What the processes and commands share, and an application never imports: the directory, hand-offs, sessions, logs."""
