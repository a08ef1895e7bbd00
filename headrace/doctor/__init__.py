"""`headrace doctor`: looks at everything that headrace stands on, and says what to do about what is not well.

One module for each thing that is looked at, one small function for each question about it. Empty here on purpose.
"""
