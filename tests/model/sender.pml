/* sender - qmail-send: preprocessing, the short way, delivery, bounces, the end, sweeping
 *
 * One process a number: the parts of its loop take turns. What it remembers is in q[n]; killed, it
 * remembers nothing.
 */
bit up;  /* it runs */
bit job; /* a message is being preprocessed: one at a time */

/* q[n].tp: preprocessing. T1 begins it and has no value; what a value means is the next step. */
#define T2  2  /* prove todo/N and mess against the commit record */
#define T3  3  /* unlink traces: list */
#define T4  4  /* … sync its directory */
#define T5  5  /* … info */
#define T6  6  /* … sync directory info */
#define T7  7  /* … bounce */
#define T8  8  /* … sync directory bounce */
#define T9  9  /* create info */
#define T10 10 /* create and write the list */
#define T11 11 /* write info, its records last */
#define T12 12 /* sync info */
#define T13 13 /* sync directory info */
#define T14 14 /* sync the list */
#define T15 15 /* sync the directory of the list */
#define T16 16 /* a change of way: sync bounce/N */
#define T17 17 /* … sync directory bounce */
#define T18 18 /* ask for the removal of todo/N */
#define T19 19 /* the answer: S5, or the end of the short way */
#define H1  20 /* the short way: busy in q[n].sp */
#define WRITING 0
#define FINISHED 1
#define ORPHAN 2

/* q[n].sp: delivery and end */
#define L1  1  /* scheduled */
#define L2  2  /* prove info, list and mess */
#define L3  3  /* ask for a delivery */
#define L4  4  /* append to bounce/N */
#define L5  5  /* sync it */
#define L6  6  /* sync directory bounce */
#define L7  7  /* done mark */
#define L8  8  /* unlink the list */
#define L9  9  /* sync its directory */
#define E1  10 /* nobody is left: look what is there */
#define E2  11 /* hand in the bounce */
#define E3  12 /* waits for the answer */
#define E4  13 /* unlink bounce/N */
#define E5  14 /* sync directory bounce */
#define E6  15 /* unlink info */
#define E7  16 /* ask for the removal of mess */

#ifdef NO_RECORD
#define GENUINE(n, x) true
#else
#define GENUINE(n, x) (q[n].data == x)
#endif

#define TP(n, s) (up && q[n].tp == s)
#define SP(n, s) (up && q[n].sp == s && !(q[n].quick && q[n].tp != H1)) /* a change of way stops the rest */
#define ALL(m)   ((1 << RCPTS_OF(m)) - 1)

/* Not delivered, not removed. It must never be a message that somebody was promised. */
inline put_aside(nr) {
    printf("!! number %d is kept aside\n", nr);
    assert(q[nr].data == 0 || !msg[q[nr].data].ack);
    q[nr].aside = 1; q[nr].unproven = 0; q[nr].tp = 0; q[nr].sp = 0
}

/* A spawner delivers what mess/N holds now. */
inline delivery(nr, x, rcpt) {
    printf("   number %d: message %d to %d: inode holds %d\n", nr, x, rcpt, q[nr].data);
    assert(q[nr].data == x);                       /* whole, and not another's */
    assert(msg[x].linked);                        /* its writer came to the end */
    assert(!msg[x].refused || again);
    assert(!(msg[x].dlv & (1 << rcpt)) || again); /* twice only after a cut or a kill */
    msg[x].dlv = msg[x].dlv | (1 << rcpt);
    if
    :: x == BOUNCE -> msg[1].told = msg[1].told | msg[BOUNCE].text
    :: else
    fi
}

inline sender_forgets() {
    up = 0; job = 0;
    for (k : 1 .. NUMBERS) {
        q[k].tp = 0; q[k].why = 0; q[k].sp = 0; q[k].m = 0; q[k].sm = 0; q[k].r = 0; q[k].quick = 0;
        q[k].done = 0; q[k].unproven = 0; q[k].aside = 0; q[k].orphan = 0; q[k].askt = 0; q[k].askf = 0
    }
    k = 0;
    w[BOUNCE].hung = (w[BOUNCE].pc != 0 && w[BOUNCE].pc != ENDED); /* whom it would answer is gone */
    verdict = 0
}

/* What is not there is not unlinked, and nothing synced for it. */
#define TRACE(n)  (q[n].list != 0 -> T3 : TRACE2(n))
#define TRACE2(n) (q[n].info != 0 -> T5 : TRACE3(n))
#define TRACE3(n) (q[n].bnc != 0 -> T7 : AFTER_TRACES(n))
#define AFTER_TRACES(n) (q[n].why == WRITING -> T9 : (q[n].why == FINISHED -> T18 : 0))

proctype sender(byte n) {
    end: do
    /* -- preprocessing -- */
    :: d_step { TP(n, 0) && !job && q[n].todo != 0 && !q[n].aside && (q[n].sp == 0 || q[n].sp == L1 || q[n].sp == E1) &&
            q[n].mess && (!q[n].lock || LOCK_IGNORED_BY_SENDER) ->
        printf("T1 number %d: todo seen\n", n);
        q[n].m = q[n].todo;
        /* todo/N is visible only when its envelope is whole (a bounce may be a second one, with the first's todo) */
        assert(!msg[q[n].m].env_torn || q[n].m == BOUNCE);
        q[n].orphan = 0;
        job = 1;
        q[n].why = WRITING;
        q[n].tp = (q[n].unproven -> T2 : TRACE(n)) }
    :: d_step { TP(n, 0) && q[n].todo != 0 && !q[n].mess && !q[n].aside && !CONCERNS(n) ->
        printf("T1 number %d: todo without mess\n", n);
        q[n].why = FINISHED;
        q[n].tp = TRACE(n) }
    :: d_step { TP(n, T2) ->
        if
        :: msg[q[n].m].env_torn || !GENUINE(n, q[n].m) -> put_aside(n); job = 0
        :: else -> printf("T2 number %d: proven\n", n); q[n].tp = TRACE(n)
        fi }
    :: d_step { TP(n, T3) -> printf("T3 number %d: unlink list\n", n);
        SET(n, list, 0);
        q[n].tp = T4 }
    :: d_step { TP(n, T4) -> printf("T4 number %d: sync its directory\n", n);
        SYNC_TRACE(n, list);
        q[n].tp = TRACE2(n);
        if :: q[n].tp == 0 -> q[n].orphan = 0 :: else fi }
    :: d_step { TP(n, T5) -> printf("T5 number %d: unlink info\n", n);
        SET(n, info, 0);
        q[n].tp = T6 }
    :: d_step { TP(n, T6) -> printf("T6 number %d: sync directory info\n", n);
        SYNC_TRACE(n, info);
        q[n].tp = TRACE3(n);
        if :: q[n].tp == 0 -> q[n].orphan = 0 :: else fi }
    :: d_step { TP(n, T7) -> printf("T7 number %d: unlink bounce\n", n);
        SET(n, bnc, 0);
        q[n].tp = T8 }
    :: d_step { TP(n, T8) -> printf("T8 number %d: sync directory bounce\n", n);
        SYNC_TRACE(n, bnc);
        q[n].tp = AFTER_TRACES(n);
        if :: q[n].tp == 0 -> q[n].orphan = 0 :: else fi }
    :: d_step { TP(n, T9) -> printf("T9 number %d: create info\n", n);
        SET(n, info, 0); /* a change of way that failed may have left one */
        SET(n, info, q[n].m);
        DIRTY(q[n].m, info); msg[q[n].m].info_torn = 1;
        q[n].tp = T10 }
    :: d_step { TP(n, T10) -> printf("T10 number %d: create and write list\n", n);
        if
        :: q[n].done != ALL(q[n].m) ->
            SET(n, list, q[n].m);
            DIRTY(q[n].m, list)
        :: else /* a list on which everybody is done is none */
        fi;
        msg[q[n].m].marks = q[n].done; msg[q[n].m].marks_dirty = 0;
        q[n].tp = T11 }
    :: d_step { TP(n, T11) -> printf("T11 number %d: write info\n", n);
        DIRTY(q[n].m, info);
#ifdef TODO_BEFORE_SYNC
        job = 0;
        q[n].tp = T18
#else
        q[n].tp = T12
#endif
        }
    :: d_step { TP(n, T12) -> printf("T12 number %d: sync info\n", n);
#ifndef NO_SYNC_INFO
        CLEAN(q[n].m, info);
#endif
        q[n].tp = T13 }
    :: d_step { TP(n, T13) -> printf("T13 number %d: sync directory info\n", n);
#ifndef NO_SYNC_INFO_NAME
        SYNC(n, info);
#endif
        q[n].tp = (q[n].list != 0 -> T14 : T16) }
    :: d_step { TP(n, T14) -> printf("T14 number %d: sync list\n", n);
#ifndef NO_SYNC_LIST
        CLEAN(q[n].m, list);
#endif
        q[n].tp = T15 }
    :: d_step { TP(n, T15) -> printf("T15 number %d: sync directory of the list\n", n);
#ifndef NO_SYNC_LIST_NAME
        SYNC(n, list);
#endif
        job = (q[n].bnc != 0);
        q[n].tp = (q[n].bnc != 0 -> T16 : T18) }
    :: d_step { TP(n, T16) -> printf("T16 number %d: sync bounce\n", n);
#ifndef NO_SYNC_BOUNCE_AT_CHANGE
        msg[q[n].m].text_dirty = 0;
        msg[q[n].m].text_ = (cuts -> msg[q[n].m].text : 0);
#endif
        q[n].tp = T17 }
    :: d_step { TP(n, T17) -> printf("T17 number %d: sync directory bounce\n", n);
#ifndef NO_SYNC_BOUNCE_NAME_AT_CHANGE
        SYNC(n, bnc);
#endif
        job = 0;
        q[n].tp = T18 }
    :: d_step { TP(n, T18) -> printf("T18 number %d: ask for the removal of todo\n", n);
        q[n].askt = 1;
        q[n].tp = T19 }
    /* T19 is in preprocessed(), below */

    /* -- the short way -- */
    :: d_step { SHORT_WAY && TP(n, T9) && !q[n].quick -> printf("H1 number %d: the short way\n", n);
        job = 0;
        q[n].unproven = 0;
        q[n].quick = 1;
        q[n].tp = H1;
        q[n].sm = q[n].m;
        q[n].sp = L3 }
    :: d_step { SHORT_WAY && TP(n, H1) && !job && (q[n].sp == L3 && (LEFT_TO_DO(n) != 0 || q[n].bnc != 0) ||
            q[n].sp == E2 || q[n].sp == E3) ->
        printf("H2 number %d: not finished soon: info and list are to be written\n", n);
        job = 1;
        q[n].tp = T9 }

    /* -- delivery -- */
    :: d_step { SP(n, L1) && q[n].tp == 0 -> printf("L1 number %d: a pass begins\n", n);
        if
        :: q[n].aside -> q[n].sp = 0
        :: !q[n].aside && q[n].list == 0 -> q[n].sp = E1
        :: !q[n].aside && q[n].list != 0 -> q[n].sp = (q[n].unproven -> L2 : L3); q[n].sm = q[n].info
        fi }
    :: d_step { SP(n, L2) && q[n].mess && q[n].info != 0 ->
        q[n].sm = q[n].info;
        if
        :: msg[q[n].sm].info_torn || q[n].list != q[n].sm || msg[q[n].sm].list_torn || !GENUINE(n, q[n].sm) ->
            put_aside(n)
        :: else -> printf("L2 number %d: proven\n", n);
            q[n].unproven = 0; q[n].sp = L3
        fi }
    :: d_step { SP(n, L3) && LEFT_TO_DO(n) != 0 && q[n].mess ->
        q[n].r = (LEFT_TO_DO(n) & 1 -> 0 : 1);
        if
        :: FAILS(q[n].sm, q[n].r) -> printf("L3 number %d: delivery to %d fails\n", n, q[n].r);
            assert(msg[q[n].sm].linked && (!msg[q[n].sm].refused || again));
            assert(q[n].data == q[n].sm);
            q[n].sp = FIRST_OF_FAILURE
        :: else -> printf("L3 number %d: delivery\n", n);
            delivery(n, q[n].sm, q[n].r);
            q[n].sp = L7
        fi }
    :: d_step { SP(n, L3) && LEFT_TO_DO(n) == 0 ->
        if
        :: q[n].quick && q[n].bnc != 0 -> q[n].sp = FIRST_OF_BOUNCE
        :: q[n].quick && q[n].bnc == 0 -> q[n].sp = 0; q[n].tp = T18
        :: else -> q[n].sp = (q[n].list != 0 -> END_OF_LIST : E1)
        fi }
    :: d_step { SP(n, L4) -> printf("L4 number %d: append to bounce\n", n);
        if
        :: q[n].bnc == 0 -> SET(n, bnc, q[n].sm);
            msg[q[n].sm].text = 0
        :: else
        fi;
        assert(q[n].bnc == q[n].sm); /* not to what another message left */
        msg[q[n].sm].text = msg[q[n].sm].text | (1 << q[n].r);
        msg[q[n].sm].text_dirty = (cuts -> 1 : 0);
        q[n].sp = (q[n].quick -> AFTER_BOUNCE : L5) /* todo/N still stands for everybody */ }
    :: d_step { SP(n, L5) -> printf("L5 number %d: sync bounce\n", n);
#ifndef NO_SYNC_BOUNCE
        msg[q[n].sm].text_dirty = 0;
        msg[q[n].sm].text_ = (cuts -> msg[q[n].sm].text : 0);
#endif
        q[n].sp = L6 }
    :: d_step { SP(n, L6) -> printf("L6 number %d: sync directory bounce\n", n);
#ifndef NO_SYNC_BOUNCE_NAME
        SYNC(n, bnc);
#endif
        q[n].sp = AFTER_BOUNCE }
    :: d_step { SP(n, L7) -> printf("L7 number %d: done mark for %d\n", n, q[n].r);
        if
        :: q[n].quick -> q[n].done = q[n].done | (1 << q[n].r)
        :: else ->
            msg[q[n].sm].marks = msg[q[n].sm].marks | (1 << q[n].r);
            msg[q[n].sm].marks_dirty = (cuts -> msg[q[n].sm].marks_dirty | (1 << q[n].r) : 0)
        fi;
        q[n].sp = (FAILS(q[n].sm, q[n].r) -> AFTER_MARK : L3);
        if
        :: q[n].sp == L3 -> q[n].r = 0
        :: else
        fi }
    :: d_step { SP(n, L8) -> printf("L8 number %d: unlink list\n", n);
        SET(n, list, 0);
        msg[q[n].sm].marks = 0; msg[q[n].sm].marks_dirty = (cuts -> ALL(q[n].sm) : 0);
        q[n].sp = L9 }
    :: d_step { SP(n, L9) -> printf("L9 number %d: sync directory of the list\n", n);
#ifndef NO_SYNC_LIST_GONE
        SYNC(n, list);
        msg[q[n].sm].marks_dirty = 0;
#endif
        q[n].sp = AFTER_L9 }

    /* -- the end -- */
    :: d_step { SP(n, E1) && q[n].tp == 0 -> printf("E1 number %d: look what is left\n", n);
        if
        :: q[n].aside || q[n].list != 0 || q[n].todo != 0 || q[n].info == 0 ->
#ifndef FORGOTTEN_WHEN_WAITING
            q[n].orphan = (q[n].todo != 0 && q[n].info != 0); /* todo may be taken back: look again */
#endif
            q[n].sp = 0; q[n].sm = 0
        :: else -> q[n].sm = q[n].info;
            if
            :: q[n].bnc == 0 || msg[q[n].bnc].text == 0 -> q[n].sp = E6;
                if
                :: q[n].bnc != 0 -> SET(n, bnc, 0) /* created, and nothing written */
                :: else
                fi
            :: else ->
                if
                :: q[n].unproven && (msg[q[n].sm].info_torn || !GENUINE(n, q[n].sm)) -> put_aside(n)
                :: else -> q[n].unproven = 0; q[n].sp = FIRST_OF_BOUNCE
                fi
            fi
        fi }
    :: d_step { SP(n, E2) && (w[BOUNCE].pc == 0 || w[BOUNCE].pc == ENDED) && verdict == 0 && q[n].mess ->
        printf("E2 number %d: hand in the bounce\n", n);
        assert(q[n].bnc == q[n].sm && q[n].data == q[n].sm); /* its own report, its own message */
        assert(msg[q[n].sm].linked && (!msg[q[n].sm].refused || again));
        /* Should an earlier one still be on its way, count only what both say. */
        msg[BOUNCE].text = (BOUNCE_IS_QUEUED -> msg[BOUNCE].text & msg[q[n].sm].text : msg[q[n].sm].text);
        w[BOUNCE].pc = Q1;
        q[n].sp = E3 }
    :: d_step { SP(n, E3) && verdict != 0 ->
        printf("E3 number %d: the bounce is %d (1 queued, 2 refused)\n", n, verdict);
        q[n].sp = (verdict == 1 -> AFTER_INJECTION : E2);
        verdict = 0 }
    :: d_step { SP(n, E4) -> printf("E4 number %d: unlink bounce\n", n);
        SET(n, bnc, 0);
        q[n].sp = AFTER_E4 }
    :: d_step { SP(n, E5) -> printf("E5 number %d: sync directory bounce\n", n);
#ifndef NO_SYNC_BOUNCE_GONE
        SYNC(n, bnc);
        msg[q[n].sm].text = 0; msg[q[n].sm].text_ = 0;
#endif
        if
        :: q[n].quick -> q[n].sp = 0; q[n].tp = T18
        :: else -> q[n].sp = E6
        fi }
    :: d_step { SP(n, E6) -> printf("E6 number %d: unlink info\n", n);
        SET(n, info, 0);
        q[n].sp = AFTER_E6 }
    :: d_step { SP(n, E7) && !q[n].askf -> printf("E7 number %d: ask for the removal of mess\n", n);
        q[n].askf = 1;
        q[n].sp = 0; q[n].sm = 0 }

    /* -- sweeping; an old file is one that no living writer has open, if the clock is right -- */
    :: d_step { up && SWEEPABLE(n) && q[n].mess && (!WRITING_TO(n) || FAULT) ->
        if
        :: WRITING_TO(n) -> faults--; printf("-- the clock jumps\n")
        :: else
        fi;
        if
        :: q[n].list != 0 || q[n].bnc != 0 -> put_aside(n)
        :: else -> printf("G1 number %d: ask for the removal of a leftover\n", n); q[n].askf = 1
        fi }
    :: d_step { up && SWEEPABLE(n) && !q[n].mess && q[n].list != 0 -> printf("G2 number %d: unlink list\n", n);
        SET(n, list, 0) }
    :: d_step { up && SWEEPABLE(n) && !q[n].mess && q[n].bnc != 0 -> printf("G2 number %d: unlink bounce\n", n);
        SET(n, bnc, 0) }
    :: d_step { up && q[n].orphan && q[n].tp == 0 && q[n].todo == 0 ->
        if
        :: q[n].info == 0 -> q[n].orphan = 0
        :: q[n].info != 0 && q[n].mess -> printf("G3 number %d: mess is back\n", n);
            q[n].orphan = 0; q[n].unproven = 1; q[n].sp = L1
        :: else -> printf("G3 number %d: info without mess\n", n);
            q[n].why = ORPHAN; q[n].tp = TRACE(n)
        fi }
    od
}

/* T19: qmail-clean has removed todo/N */
inline preprocessed(nr) {
    if
    :: q[nr].tp == T19 -> printf("T19 number %d: todo is gone\n", nr);
        q[nr].tp = 0;
        q[nr].unproven = 0;
        if
        :: q[nr].quick && q[nr].info == 0 -> q[nr].sp = E7
        :: q[nr].quick && q[nr].info != 0 -> /* changed: it goes on where it was stopped */
        :: !q[nr].quick && q[nr].info != 0 -> q[nr].sp = L1
        :: else /* it was without a message */
        fi;
        q[nr].quick = 0; q[nr].done = 0; q[nr].m = 0
    :: else
    fi
}
