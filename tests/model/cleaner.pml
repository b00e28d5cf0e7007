/* cleaner - qmail-clean; and one whose qmail-send was killed: it finishes the request it has */
inline cleaner_is_orphaned() {
    c[1].pc = c[0].pc; c[1].n = c[0].n;
    c[0].pc = 0; c[0].n = 0
}

inline cleaner_dies() {
    c[0].pc = 0; c[0].n = 0
}

proctype cleaner(byte i) {
    end: do
    /* requests about one number come in the order in which they were made */
    :: d_step { i == 0 && up && c[0].pc == 0 && q[1].askf -> q[1].askf = 0; c[0].n = 1; c[0].pc = C1 }
    :: d_step { i == 0 && up && c[0].pc == 0 && q[NUMBERS].askf -> q[NUMBERS].askf = 0; c[0].n = NUMBERS; c[0].pc = C1 }
    :: d_step { i == 0 && up && c[0].pc == 0 && q[1].askt && !q[1].askf -> q[1].askt = 0; c[0].n = 1; c[0].pc = C5 }
    :: d_step { i == 0 && up && c[0].pc == 0 && q[NUMBERS].askt && !q[NUMBERS].askf ->
        q[NUMBERS].askt = 0; c[0].n = NUMBERS; c[0].pc = C5 }

    :: d_step { c[i].pc == C1 -> printf("C1 number %d: look for the lock\n", c[i].n);
        if
        :: q[c[i].n].lock && !LOCK_IGNORED_BY_CLEANER -> c[i].pc = 0; c[i].n = 0
#ifndef MESS_UNSEEN
        :: !q[c[i].n].mess -> c[i].pc = 0; c[i].n = 0 /* gone: what comes next is not what was meant */
#endif
        :: else -> c[i].pc = AFTER_C1
        fi }
    :: d_step { c[i].pc == C2 -> printf("C2 number %d: look for todo\n", c[i].n);
        if
        :: q[c[i].n].todo != 0 -> c[i].pc = 0; c[i].n = 0
        :: else -> c[i].pc = C3
        fi }
    :: d_step { c[i].pc == C3 -> printf("C3 number %d: unlink intd\n", c[i].n);
        SET(c[i].n, intd, 0);
        c[i].pc = C4 }
    :: d_step { c[i].pc == C4 -> printf("C4 number %d: unlink mess\n", c[i].n);
        SET(c[i].n, mess, 0);
        c[i].pc = 0; c[i].n = 0 }
    :: d_step { c[i].pc == C5 -> printf("C5 number %d: unlink intd\n", c[i].n);
        SET(c[i].n, intd, 0);
        c[i].pc = C6 }
    :: d_step { c[i].pc == C6 -> printf("C6 number %d: unlink todo\n", c[i].n);
        SET(c[i].n, todo, 0);
        if
        :: i == 0 -> preprocessed(c[i].n)
        :: else
        fi;
        c[i].pc = 0; c[i].n = 0 }

    /* what nobody asks for: old leftovers */
    :: d_step { i == 0 && up && q[1].pend && !WRITING_TO(1) -> printf("C7 number 1: unlink pid\n"); SET_PEND(1, 0) }
    :: d_step { i == 0 && up && q[NUMBERS].pend && !WRITING_TO(NUMBERS) -> printf("C7 number 2: unlink pid\n");
        SET_PEND(NUMBERS, 0) }
    :: d_step { i == 0 && up && q[1].intd != 0 && !q[1].mess && q[1].todo == 0 && !WRITING_TO(1) ->
        printf("C8 number 1: unlink intd\n"); SET(1, intd, 0) }
    :: d_step { i == 0 && up && q[NUMBERS].intd != 0 && !q[NUMBERS].mess && q[NUMBERS].todo == 0 && !WRITING_TO(NUMBERS) ->
        printf("C8 number 2: unlink intd\n"); SET(NUMBERS, intd, 0) }
    od
}
