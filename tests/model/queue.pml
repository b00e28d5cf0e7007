/* queue - the life of a message in the queue, with power cuts and kills, to be checked by spin
 *
 * Run by scripts/model, which says what is defined:
 *   ONE            one message instead of two
 *   RCPTS          recipients of message 1 (1 or 2)
 *   FAILING        bits of those of message 1 that fail for good; its bounce is one message more
 *   SHORT          the short way may be taken
 *   CUTS, KILLS    up to so many power cuts; kills and other faults
 * and mutations, each of which must be found. A step is atomic; its name stands in doc/internals.md
 * and in the code that performs it. Everything may happen between two steps.
 */
#define NUMBERS  2 /* inode numbers: enough for one to be used again while the other is busy */
#define MESSAGES 3
#define BOUNCE   3 /* the bounce of message 1 */

#ifndef RCPTS
#define RCPTS 1
#endif
#ifndef FAILING
#define FAILING 0
#endif
#ifndef CUTS
#define CUTS 1
#endif
#ifndef KILLS
#define KILLS 0
#endif
#ifdef SHORT
#define SHORT_WAY true
#else
#define SHORT_WAY false
#endif

#define FAULT (faults > 0)
#define RCPTS_OF(x) (x == 1 -> RCPTS : 1)
#define FAILS(x, rcpt) (x == 1 && ((FAILING) & (1 << rcpt)))
#define LEFT_TO_DO(n) (ALL(q[n].sm) & ~(q[n].quick -> q[n].done : msg[q[n].sm].marks))
#define SWEEPABLE(n) (q[n].todo == 0 && q[n].info == 0 && !q[n].aside && !CONCERNS(n) && q[n].tp == 0 && q[n].sp == 0)
#define BOUNCE_IS_QUEUED \
    (q[1].todo == BOUNCE || q[1].info == BOUNCE || q[NUMBERS].todo == BOUNCE || q[NUMBERS].info == BOUNCE)

/* mutations: an order that is wrong */
#ifdef LOCK_IGNORED
#define LOCK_IGNORED_BY_CLEANER true
#else
#define LOCK_IGNORED_BY_CLEANER false
#endif
#ifdef LOCK_UNSEEN
#define LOCK_IGNORED_BY_SENDER true
#else
#define LOCK_IGNORED_BY_SENDER false
#endif
#ifdef NO_LOOK_FOR_TODO
#define AFTER_C1 C3
#else
#define AFTER_C1 C2
#endif
#ifdef OLD_CLEANER_STAYS
#define OLD_CLEANER_GONE true
#else
#define OLD_CLEANER_GONE (c[1].pc == 0)
#endif
#ifdef MARK_BEFORE_BOUNCE
#define FIRST_OF_FAILURE L7
#define AFTER_MARK L4
#define AFTER_BOUNCE L3
#else
#define FIRST_OF_FAILURE L4
#define AFTER_MARK L3
#define AFTER_BOUNCE L7
#endif
#ifdef BOUNCE_GONE_BEFORE_ANSWER
#define FIRST_OF_BOUNCE E4
#define AFTER_E4 E2
#define AFTER_INJECTION E5
#else
#define FIRST_OF_BOUNCE E2
#define AFTER_E4 E5
#define AFTER_INJECTION E4
#endif
#ifdef INFO_BEFORE_LIST
#define END_OF_LIST E6
#define AFTER_E6 L8
#define AFTER_L9 E7
#else
#define END_OF_LIST L8
#define AFTER_E6 E7
#define AFTER_L9 E1
#endif
#ifdef TRACES_UNSYNCED
#define SYNC_TRACE(n, f) skip
#else
#define SYNC_TRACE(n, f) SYNC(n, f)
#endif

byte k; /* a loop's, 0 outside */

#include "disk.pml"
#include "writer.pml"
#include "sender.pml"
#include "cleaner.pml"

inline removed_by_hand(nr) {
    SET(nr, todo, 0); SET(nr, intd, 0); SET(nr, info, 0); SET(nr, list, 0); SET(nr, bnc, 0);
    if
    :: !WRITING_TO(nr) -> SET(nr, mess, 0)
    :: else
    fi;
    q[nr].aside = 0
}

proctype start() {
    end: do
    :: d_step { !up && OLD_CLEANER_GONE -> printf("A1 qmail-send starts: what an earlier life unlinked is synced\n");
#ifndef NO_SYNC_AT_START
        for (k : 1 .. NUMBERS) { SYNC(k, info); SYNC(k, list); SYNC(k, bnc) }
        k = 0;
#endif
        printf("A2 it looks what is there\n");
        for (k : 1 .. NUMBERS) {
            if
            :: q[k].todo != 0 -> q[k].unproven = 1;
#ifndef FORGOTTEN_WHEN_WAITING
                q[k].orphan = (q[k].info != 0) /* should its writer still take todo/N back */
#endif
            :: q[k].todo == 0 && q[k].info != 0 && q[k].mess -> q[k].unproven = 1; q[k].sp = L1
            :: q[k].todo == 0 && q[k].info != 0 && !q[k].mess -> q[k].orphan = 1
            :: else
            fi
        }
        k = 0;
        up = 1 }

    :: d_step { FAULT && up -> faults--; again = 1;
        printf("-- qmail-send is killed\n");
        cleaner_is_orphaned();
        sender_forgets() }
    /* What is kept aside holds nothing that was promised (put_aside): somebody removes it. */
    :: d_step { up && q[1].aside -> printf("-- number 1 is removed by hand\n"); removed_by_hand(1) }
    :: d_step { up && q[NUMBERS].aside -> printf("-- number 2 is removed by hand\n"); removed_by_hand(NUMBERS) }

    :: d_step { FAULT && up -> faults--; again = 1;
        printf("-- qmail-clean is killed, and qmail-send ends\n");
        cleaner_dies();
        sender_forgets() }
    od
}

proctype power() {
    end: do
    :: atomic { cuts > 0 -> printf("-- power cut\n");
        again = 1;
        disk_after_cut();
        for (k : 1 .. NUMBERS) { q[k].lock = 0 }
        writers_after_cut();
        cleaner_dies();
        c[1].pc = 0; c[1].n = 0;
        sender_forgets();
        w[BOUNCE].hung = 0 }
    od
}

/* When nothing can happen any more. */
proctype audit() {
    timeout;
    d_step {
        printf("== the end\n");
        for (k : 1 .. NUMBERS) {
            /* Everything has been cleaned. */
            assert((!q[k].pend && !q[k].mess && q[k].intd == 0 && q[k].todo == 0 && q[k].info == 0 &&
                q[k].list == 0 && q[k].bnc == 0))
        }
        for (k : 1 .. 2) {
            assert(w[k].pc == ENDED || w[k].pc == 0);
            /* What was promised has been kept. */
            assert(!msg[k].ack || (msg[k].dlv | msg[k].told) == ALL(k))
        }
        k = 0
    }
}

init {
    atomic {
        if
        :: cuts = 0
        :: CUTS > 0 -> cuts = 1
        :: CUTS > 1 -> cuts = 2
        fi;
        if
        :: faults = 0
        :: KILLS > 0 -> faults = 1
        :: KILLS > 1 -> faults = 2
        fi;
        for (k : 1 .. NUMBERS) {
#ifdef PIDS
            SYNC(k, pend);
#endif
            SYNC(k, mess); SYNC(k, data); SYNC(k, intd); SYNC(k, todo); SYNC(k, info); SYNC(k, list); SYNC(k, bnc)
        }
        k = 0;
        w[1].pc = Q1;
        run writer(1);
#ifndef ONE
        w[2].pc = Q1;
        run writer(2);
#endif
#if FAILING
        run writer(BOUNCE);
#endif
        run start();
        run sender(1);
        run sender(NUMBERS);
        run cleaner(0);
#if KILLS
        run cleaner(1);
#endif
#if CUTS
        run power();
#endif
        run audit()
    }
}
