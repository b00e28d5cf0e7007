"""Hostile input at every door: whatever comes in, the right refusal, nothing else, in bounded memory."""

from tests.crash import doors_bodies, doors_smtp

TITLE = "Hostile input"


def cases(sample, seed):
    if sample:
        yield "around the end of data", doors_smtp.around_the_end, (20,)
        yield "orders", doors_smtp.orders, (3, 0, 1)
        yield "bodies out", doors_bodies.out, (0, 1, 200)
        yield "bodies in", doors_bodies.inward, (0, 1, 200)
        return
    for part in range(4):
        yield f"bodies out {part}", doors_bodies.out, (part, 4)
        yield f"bodies in {part}", doors_bodies.inward, (part, 4)
    yield "around the end of data", doors_smtp.around_the_end, ()
    for part in range(4):
        yield f"orders {part}", doors_smtp.orders, (5, part, 4)
    yield "behind QUIT", doors_smtp.behind_quit, ()
    yield "floods", doors_smtp.floods, (1 << 20,)
