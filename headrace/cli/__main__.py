"""`python -P -m headrace.cli`: the same as the command `headrace`.

Without -P Python looks for modules first in the working directory: a `click.py` there would be run in place of click.
"""

from headrace.cli import main

if __name__ == "__main__":
    main()
