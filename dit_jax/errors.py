"""The one exception that is the user's to mend."""


class UserError(ValueError):
    """A bad value from the user: one line with what is wrong, the value, and the fix.

    `main.py` prints it behind `error:` and exits with 2; every other exception is a bug and keeps its traceback.
    """
