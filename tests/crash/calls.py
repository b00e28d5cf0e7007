"""Every system call of every program that touches mail fails once. How: calls_rig.py; the tracer: calls_tracer.c."""

from tests.crash import calls_mail, calls_queue, calls_send
from tests.crash.calls_rig import campaign

TITLE = "Every system call fails once"

STAGES = {  # and into how many shares a case is cut, that processors have equal work
    calls_queue.Direct: 1,
    calls_queue.Queued: 2,
    calls_mail.Smtpd: 1,
    calls_mail.Inject: 1,
    calls_mail.Sendmail: 1,
    calls_mail.Forward: 1,
    calls_send.Start: 4,
    calls_send.Short: 1,
    calls_send.ShortBounce: 1,
    calls_send.Change: 2,
    calls_send.Long: 2,
    calls_send.LongBounce: 2,
    calls_queue.Clean: 1,
    calls_mail.Lspawn: 2,
    calls_mail.Maildir: 1,
    calls_mail.Mbox: 1,
    calls_mail.Program: 1,
    calls_mail.Forwarding: 1,
    calls_mail.Rspawn: 2,
    calls_mail.Remote: 1,
    calls_mail.Pop: 1,
}


def cases(sample, seed):
    for stage, shares in STAGES.items():
        shares = 1 if sample else shares
        for k in range(1, shares + 1):
            name = stage.name + (f" ({k}/{shares})" if shares > 1 else "")
            yield name, campaign, (stage, sample, seed, (k, shares))
