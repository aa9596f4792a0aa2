"""What the clients' scripts share: the proxies' addresses, the words of the cases, and the rows of the matrix."""

import sys

#: A proxy that refuses with 200, one that refuses with 403, and one that reads answers and finds each of them harmful.
ANSWERING, DENYING, CUTTING = sys.argv[1:4]
REFUSAL = "I can't help with that."
TEXT = "Hello there."
#: What is left of a streamed answer that is cut.
CUT = "Hello there," + REFUSAL


def case(form, client, name, seen):
    """One case came out as expected; `seen` is what the client makes of it."""
    print("case", form, client, name, seen, sep="\t")


def raised(error, call):
    """The error that `call` raises."""
    try:
        call()
    except error as e:
        return e
    raise AssertionError(f"{error.__name__} was not raised")
