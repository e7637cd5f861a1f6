"""The three ways to stop that are no bugs; apart, so that flags need not import JAX."""


class Mistake(Exception):  # noqa: N818 (a user's mistake is not an error of ours)
  """A user's mistake: one line that says what is wrong, where, and what is allowed.

  Commands print it without a traceback and exit with 2.
  """


class Leave(Exception):  # noqa: N818
  """Stopped through no fault of the config: commands print it and exit with 75."""


class Failure(Exception):  # noqa: N818
  """The run cannot go on, and the same command again would not help: exit 1."""
