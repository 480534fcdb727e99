"""Text of unknown origin, fit for a terminal."""


def printable(text: str) -> str:
    """The text with each character that a terminal may obey instead of showing it as an escape.

    Names of jobs and queues come from any producer. They may hold control sequences, or marks that turn the direction
    of text.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii") for char in text
    )
