"""`headrace up`: everything on one node, supervised."""
