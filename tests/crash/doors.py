"""Hostile input at every door: whatever comes in, the right refusal, nothing else, in bounded memory."""

from tests.crash import doors_bodies, doors_local, doors_pipes, doors_smtp

TITLE = "Hostile input"


def cases(sample, seed):
    if sample:
        yield "around the end of data", doors_smtp.around_the_end, (30,)
        yield "orders", doors_smtp.orders, (3, 0, 1)
        if doors_bodies.has_sink():
            yield "bodies out", doors_bodies.out, (0, 1, 300)
        yield "bodies in", doors_bodies.inward, (0, 1, 200)
        yield "envelopes", doors_pipes.envelopes, ("socket", 3)
        yield "POP3 orders", doors_local.pop3_orders, (2,)
        yield "POP3 numbers", doors_local.pop3_numbers, (2,)
        yield "qmail-clean", doors_local.clean, (3,)
        yield "environment", doors_local.local_environment, (40,)
        yield "to qmail-rspawn", doors_pipes.to_spawner, ("qmail-rspawn", (), 5, seed, True)
        yield "to qmail-send", doors_pipes.to_send, ("remote", 2, seed)
        return
    yield "DNS", doors_pipes.dns, ()  # it mostly waits: others run beside it
    yield "DNS, much", doors_pipes.dns_much, ()
    for part in range(6 if doors_bodies.has_sink() else 0):
        yield f"bodies out {part}", doors_bodies.out, (part, 6)
    for part in range(4):
        yield f"bodies in {part}", doors_bodies.inward, (part, 4)
    yield "around the end of data", doors_smtp.around_the_end, ()
    for part in range(4):
        yield f"orders {part}", doors_smtp.orders, (5, part, 4)
    yield "behind QUIT", doors_smtp.behind_quit, ()
    yield "floods", doors_smtp.floods, (1 << 20,)
    for door in ("direct", "socket"):
        yield f"envelopes, {door}", doors_pipes.envelopes, (door, 6)
    yield "run/queue", doors_pipes.hellos, ()
    yield "POP3 orders", doors_local.pop3_orders, (4,)
    yield "POP3 numbers", doors_local.pop3_numbers, (3,)
    yield "POP3 ends", doors_local.pop3_ends, ()
    yield "logins", doors_local.logins, (3,)
    yield "qmail-clean", doors_local.clean, (6,)
    yield "environment", doors_local.local_environment, ()
    yield "instructions", doors_local.instructions, ()
    for way in ("local", "remote"):
        yield f"to qmail-send, {way}", doors_pipes.to_send, (way, 60, seed)
    yield "to qmail-lspawn", doors_pipes.to_spawner, ("qmail-lspawn", ("./Mailbox",), 100, seed, False)
    for burst in (False, True):
        yield f"to qmail-rspawn {burst}", doors_pipes.to_spawner, ("qmail-rspawn", (), 100, seed, burst)
    yield "qmail-lspawn, without end", doors_pipes.to_spawner_without_end, ("qmail-lspawn", ("./Mailbox",))
    yield "qmail-rspawn, without end", doors_pipes.to_spawner_without_end, ("qmail-rspawn", ())
    yield "tcpto", doors_local.tcpto, (200, seed)
    yield "rules.cdb", doors_local.cdb_rules, (1,)
    yield "morercpthosts.cdb", doors_local.cdb_morercpthosts, (5,)
    yield "users/cdb", doors_local.cdb_users, (3, 3)
