/* writer - queue::accept, behind both doors
 *
 * Writer i brings message i. A caller that hangs up is one of the second door (qmail-queued): the child
 * notices before the link, or goes on. Writer BOUNCE is what qmail-send hands its bounces to.
 */
#define Q1  1  /* create pid/… */
#define Q2  2  /* take the lock */
#define Q3  3  /* link mess/S/N */
#define Q4  4  /* unlink pid/… */
#define Q5  5  /* write mess */
#define Q6  6  /* create intd/N */
#define Q7  7  /* write intd, commit record last */
#define Q8  8  /* sync mess */
#define Q9  9  /* sync intd */
#define Q10 10 /* sync directory mess/S */
#define Q11 11 /* see that the caller is there */
#define Q12 12 /* link todo/N */
#define Q13 13 /* sync directory todo */
#define Q14 14 /* see that mess has its name */
#define Q15 15 /* give up the lock */
#define Q16 16 /* answer 0 */
#define R1  17 /* unlink intd/N */
#define R2  18 /* unlink mess/S/N */
#define R3  19 /* after the link: unlink todo/N, keep mess */
#define R4  20 /* answer with a failure */
#define ENDED 21

typedef Writer {
    unsigned pc : 5;
    unsigned n  : 2; /* its number, while it holds the file open */
    unsigned hung : 1;
};
Writer w[MESSAGES + 1];
unsigned verdict : 2; /* of a bounce: 1 queued, 2 not */

#define C1 1 /* foop/N: open mess, see that no writer holds the lock; it stays open */
#define C2 2 /* … that todo/N is not there */
#define C3 3 /* … unlink intd/N */
#define C4 4 /* … unlink mess/S/N */
#define C5 5 /* todo/N: unlink intd/N */
#define C6 6 /* … unlink todo/N */

typedef Cleaner {
    unsigned pc : 3;
    unsigned n  : 2;
};
Cleaner c[2]; /* c[1] is the orphan */

#define CONCERNS(x) (q[x].askt || q[x].askf || (c[0].pc != 0 && c[0].n == x))

#define CLEANING(i, x) (c[i].n == x && c[i].pc >= C2 && c[i].pc <= C4)
#define WRITING_TO(x) (w[1].n == x || w[2].n == x || w[BOUNCE].n == x)
#define OPEN(x)   (WRITING_TO(x) || CLEANING(0, x) || CLEANING(1, x))
#define HAUNTED(x) (q[x].todo != 0)
/* An inode that nothing leads to and nobody has open, and whose number no stale envelope haunts. */
#define FREE(x)   (q[x].pend == 0 && q[x].mess == 0 && !OPEN(x) && !HAUNTED(x))
#define AT(i, s)  (w[i].pc == s)

/* The order of steps; mutations change it. */
#ifdef LINK_BEFORE_SYNC
#define AFTER_Q7  Q11
#define AFTER_Q10 Q14
#define AFTER_Q12 Q13
#define AFTER_Q13 Q8
#else
#define AFTER_Q7  Q8
#define AFTER_Q10 Q11
#define AFTER_Q12 Q13
#define AFTER_Q13 Q14
#endif

proctype writer(byte i) {
    end: do
    :: d_step { AT(i, Q1) && (i != BOUNCE || w[i].hung == 0) && (FREE(1) || FREE(NUMBERS)) ->
        if
        :: FREE(1) -> w[i].n = 1
        :: else -> w[i].n = NUMBERS
        fi;
        printf("Q1 message %d: create pid, number %d\n", i, w[i].n);
        SET_PEND(w[i].n, 1);
        SET(w[i].n, data, 0);
        w[i].pc = Q2 }
    :: d_step { AT(i, Q2) -> printf("Q2 number %d: lock\n", w[i].n);
        q[w[i].n].lock = 1;
        w[i].pc = Q3 }
    :: d_step { AT(i, Q3) -> printf("Q3 number %d: link mess\n", w[i].n);
        SET(w[i].n, mess, 1);
        w[i].pc = Q4 }
    :: d_step { AT(i, Q4) -> printf("Q4 number %d: unlink pid\n", w[i].n);
        SET_PEND(w[i].n, 0);
        w[i].pc = Q5 }
    :: d_step { AT(i, Q5) -> printf("Q5 number %d: write mess\n", w[i].n);
        SET(w[i].n, data, i);
        w[i].pc = Q6 }
    :: d_step { AT(i, Q6) -> printf("Q6 number %d: create intd\n", w[i].n);
        SET(w[i].n, intd, 0); /* what a crash left under this name is removed first */
        SET(w[i].n, intd, i);
        DIRTY(i, env); msg[i].env_torn = 1;
        w[i].pc = Q7 }
    :: d_step { AT(i, Q7) -> printf("Q7 number %d: write intd\n", w[i].n);
        DIRTY(i, env);
        w[i].pc = AFTER_Q7 }
    :: d_step { AT(i, Q8) -> printf("Q8 number %d: sync mess\n", w[i].n);
#ifndef NO_SYNC_MESS
        SYNC(w[i].n, data);
#endif
        w[i].pc = Q9 }
    :: d_step { AT(i, Q9) -> printf("Q9 number %d: sync intd\n", w[i].n);
#ifndef NO_SYNC_INTD
        CLEAN(i, env);
#endif
        w[i].pc = Q10 }
    :: d_step { AT(i, Q10) -> printf("Q10 number %d: sync directory mess\n", w[i].n);
#ifndef NO_SYNC_MESS_NAME
        SYNC(w[i].n, mess);
#endif
        w[i].pc = AFTER_Q10 }
    :: d_step { AT(i, Q11) -> printf("Q11 number %d: look for the caller\n", w[i].n);
        w[i].pc = (w[i].hung -> R1 : Q12) }
    :: d_step { AT(i, Q12) ->
        if /* the name is taken, or a cleanup took intd from under us */
        :: q[w[i].n].todo != 0 || q[w[i].n].intd != i -> w[i].pc = R1
        :: else -> printf("Q12 number %d: link todo\n", w[i].n);
            SET(w[i].n, todo, i);
            msg[i].linked = 1;
            w[i].pc = AFTER_Q12
        fi
#ifdef UNLOCK_BEFORE_SYNC
        ; q[w[i].n].lock = 0
#endif
        }
    :: d_step { AT(i, Q13) -> printf("Q13 number %d: sync directory todo\n", w[i].n);
#ifndef NO_SYNC_TODO_NAME
        SYNC(w[i].n, todo);
#endif
        w[i].pc = AFTER_Q13 }
    :: d_step { AT(i, Q14) -> printf("Q14 number %d: look at mess's link count\n", w[i].n);
        w[i].pc = (q[w[i].n].mess || q[w[i].n].pend -> Q15 : R3) }
    :: d_step { AT(i, Q15) -> printf("Q15 number %d: give up the lock\n", w[i].n);
        q[w[i].n].lock = 0;
        w[i].n = 0;
        w[i].pc = Q16 }
    :: d_step { AT(i, Q16) -> printf("Q16 message %d: answer 0\n", i);
        if
        :: i == BOUNCE && !w[i].hung -> verdict = 1
        :: i != BOUNCE && !w[i].hung -> msg[i].ack = 1
        :: else
        fi;
        w[i].hung = 0;
        w[i].pc = ENDED }

    /* a failure before the link: nothing is left */
    :: d_step { AT(i, R1) -> printf("R1 number %d: unlink intd\n", w[i].n);
        if
        :: q[w[i].n].intd == i -> SET(w[i].n, intd, 0)
        :: else
        fi;
        w[i].pc = R2 }
    :: d_step { AT(i, R2) -> printf("R2 number %d: unlink mess\n", w[i].n);
        SET(w[i].n, mess, 0);
        w[i].pc = R4 }
    /* a failure after it: the name may survive, so mess must stay */
    :: d_step { AT(i, R3) -> printf("R3 number %d: unlink todo\n", w[i].n);
        SET(w[i].n, todo, 0);
        w[i].pc = R4 }
    :: d_step { AT(i, R4) -> printf("R4 message %d: answer with a failure\n", i);
        q[w[i].n].lock = 0;
        w[i].n = 0;
        if
        :: i == BOUNCE -> verdict = (w[i].hung -> 0 : 2)
        :: i != BOUNCE && !w[i].hung -> msg[i].refused = 1
        :: else
        fi;
        w[i].hung = 0;
        w[i].pc = ENDED }

    /* faults */
    :: d_step { FAULT && i != BOUNCE && w[i].pc >= Q8 && w[i].pc <= Q10 && !msg[i].linked -> faults--;
        printf("-- number %d: a sync fails\n", w[i].n);
        w[i].pc = R1 }
    :: d_step { FAULT && i != BOUNCE && AT(i, Q13) -> faults--;
        printf("-- number %d: the sync of directory todo fails\n", w[i].n);
        w[i].pc = R3 }
    :: d_step { FAULT && w[i].n != 0 && w[i].hung == 0 && i != BOUNCE -> faults--;
        printf("-- the caller of message %d hangs up\n", i);
        w[i].hung = 1 }
    :: d_step { FAULT && w[i].n != 0 -> faults--;
        printf("-- the writer of message %d is killed\n", i);
        q[w[i].n].lock = 0;
        w[i].n = 0;
        again = again | (w[i].pc > Q12); /* it is in the queue, and the caller will bring it again */
        if
        :: i == BOUNCE && !w[i].hung -> verdict = 2
        :: else
        fi;
        w[i].hung = 0;
        w[i].pc = ENDED }
    :: d_step { AT(i, Q1) && i == BOUNCE && w[i].hung -> /* it had not begun */
        w[i].hung = 0;
        w[i].pc = ENDED }
    od
}

inline writers_after_cut() {
    for (k : 1 .. MESSAGES) {
        if
        :: w[k].n != 0 || w[k].pc == Q16 || k == BOUNCE -> w[k].n = 0; w[k].pc = ENDED
        :: else
        fi;
        w[k].hung = 0
    }
    k = 0;
    verdict = 0
}
